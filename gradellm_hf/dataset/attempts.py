"""A batch of prompts is explained together; if that fails, in parts, so that a prompt that fails takes no other with it."""

from typing import Any

from ..engines.memory import is_device_lost, is_out_of_memory, release_memory
from ..errors import InvalidInputError, UnsupportedArchitectureError
from ..jobs.run import seeded
from ..model import GradELLM
from ..results.explanation import Explanation
from ..text.encoding import TEMPLATE_OPTIONS
from .batches import SortedPrompts
from .shards import Result

_HARMLESS = "The"  # a prompt that is not to blame if it fails


class Attempts:
    """Explains batches of prompts, of which some may fail.

    Args:
        explainer: The model with its tokenizer and configuration.
        generate_kwargs: For `GradELLM.explain`.
    """

    def __init__(self, explainer: GradELLM, generate_kwargs: dict[str, Any]):
        self._explainer, self._generate_kwargs = explainer, generate_kwargs
        self._has_explained = False

    def explain(self, prompts: SortedPrompts, batch: range, seed: str) -> list[Result]:
        """What becomes of the prompts at these places.

        If they do not fit into memory, each half of them is explained; if they fail otherwise, each prompt alone.

        Args:
            seed: A batch is sampled from it and its places.

        Raises:
            InvalidInputError: Nothing can be explained with these arguments.
            UnsupportedArchitectureError: The model cannot be explained exactly.
        """
        try:
            return self._together(prompts, batch, seed)
        except Exception as error:
            if isinstance(error, UnsupportedArchitectureError) or is_device_lost(error):
                raise  # no other prompt will work
            if len(batch) == 1:
                self._check_arguments(error)
                return [Result(prompts.index(batch.start), prompts.id(batch.start), [], f"{type(error).__name__}: {error}")]
            size = -(-len(batch) // 2) if is_out_of_memory(error) else 1
        release_memory()  # only here: the error, and the tensors that its traceback refers to, are gone now
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        return [result for part in parts for result in self.explain(prompts, part, seed)]

    def _together(self, prompts: SortedPrompts, batch: range, seed: str) -> list[Result]:
        asked = [prompts.prompt(place) for place in batch]
        with seeded(f"{seed}-{batch.start}-{batch.stop}", self._explainer.model):
            explanations: list[Explanation] = self._explainer.explain(
                [prompt.content for prompt in asked], **self._generate_kwargs
            )
        self._has_explained = True
        each = len(explanations) // len(batch)
        return [
            Result(prompts.index(place), prompt.id, explanations[i * each : (i + 1) * each])
            for i, (place, prompt) in enumerate(zip(batch, asked))
        ]

    def _check_arguments(self, error: Exception) -> None:
        """Raises InvalidInputError if the first prompt that fails is not to blame: any other fails with these arguments too."""
        if self._has_explained:
            return
        try:
            kwargs = {name: value for name, value in self._generate_kwargs.items() if name not in TEMPLATE_OPTIONS}
            with seeded("", self._explainer.model):
                self._explainer.explain([_HARMLESS], **kwargs)
        except Exception as other_error:
            raise InvalidInputError(f"No prompt can be explained with these arguments: {other_error}") from error
        self._has_explained = True
