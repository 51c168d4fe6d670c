"""The prompts of a job in the order of their lengths, and the explanation of a range of them, of which some may fail."""

import hashlib
from array import array
from collections.abc import Iterator
from typing import Any

from ..engines.memory import is_device_lost, is_out_of_memory, release_memory
from ..errors import InvalidInputError, UnsupportedArchitectureError
from ..jobs.manifest import fingerprint
from ..jobs.prompts import PromptReader
from ..jobs.run import seeded
from ..model import GradELLM
from ..results.explanation import Explanation
from ..text.encoding import TEMPLATE_OPTIONS, encode_prompt, text_tokenizer
from .shards import Result


class SortedPrompts:
    """Prompts in the order of their lengths, the longest first. A place is a position in that order.

    Attributes:
        fingerprint: A hash over all prompts, in the order of the input.

    Args:
        explainer: The model with its tokenizer and configuration.
        prompts: The prompts.
        batch_size: Number of prompts that are explained together.
        seed: Of sampling. A batch is sampled from this seed and its places.
        generate_kwargs: For `GradELLM.explain`.

    Raises:
        InvalidInputError: Not a single prompt can be read.
    """

    def __init__(
        self,
        explainer: GradELLM,
        prompts: PromptReader,
        batch_size: int,
        seed: int,
        generate_kwargs: dict[str, Any],
    ):
        self._explainer, self._prompts, self._batch_size, self._seed = explainer, prompts, batch_size, seed
        self._generate_kwargs = generate_kwargs
        self._has_explained = False
        tokenizer = text_tokenizer(explainer.tokenizer)
        template = {name: generate_kwargs[name] for name in TEMPLATE_OPTIONS if generate_kwargs.get(name) is not None}
        digest, first_error, lengths = hashlib.sha256(), None, array("Q")
        for index in range(len(prompts)):
            record: Any = None
            token_ids: list[int] = []
            try:
                record = prompts[index]
                token_ids = encode_prompt(tokenizer, record.content, template)[2]
            except Exception as error:  # recorded when its turn comes
                first_error = first_error or error
            lengths.append(len(token_ids))
            digest.update(fingerprint([record, token_ids]).encode())
        if not any(lengths):
            raise InvalidInputError(f"No prompt can be read; what is wrong with the first one: {first_error}") from first_error
        self.fingerprint = digest.hexdigest()[:32]
        self._lengths = lengths
        self._order = array("Q", sorted(range(len(prompts)), key=lambda index: -lengths[index]))

    def __len__(self) -> int:
        return len(self._order)

    def index(self, place: int) -> int:
        """The position in the input of the prompt at a place."""
        return self._order[place]

    def explain(self, places: range, progress: Any) -> Iterator[Result]:
        """What becomes of the prompts at these places, batch by batch."""
        for start in range(places.start, places.stop, self._batch_size):
            batch = range(start, min(start + self._batch_size, places.stop))
            yield from self._explain_or_split(batch)
            progress.update(len(batch))

    def _explain_or_split(self, batch: range) -> list[Result]:
        """One batch. If it does not fit into memory, its halves are explained; if it fails otherwise, each prompt alone."""
        try:
            return self._explain_batch(batch)
        except Exception as error:
            if isinstance(error, UnsupportedArchitectureError) or is_device_lost(error):
                raise  # no other prompt will work
            if len(batch) == 1:
                self._check_others(batch.start, error)
                index = self._order[batch.start]
                return [Result(index, self._prompts.id(index), [], f"{type(error).__name__}: {error}")]
            size = -(-len(batch) // 2) if is_out_of_memory(error) else 1
        release_memory()  # only here: the error, and the tensors that its traceback refers to, are gone now
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        return [result for part in parts for result in self._explain_or_split(part)]

    def _explain_batch(self, batch: range) -> list[Result]:
        indices = [self._order[place] for place in batch]
        prompts = [self._prompts[index] for index in indices]
        with seeded(f"{self._seed}-{batch.start}-{batch.stop}", self._explainer.model):
            explanations: list[Explanation] = self._explainer.explain(
                [prompt.content for prompt in prompts], **self._generate_kwargs
            )
        self._has_explained = True
        each = len(explanations) // len(batch)
        return [
            Result(index, prompt.id, explanations[i * each : (i + 1) * each])
            for i, (index, prompt) in enumerate(zip(indices, prompts))
        ]

    def _check_others(self, place: int, error: Exception) -> None:
        """Raises InvalidInputError if the first prompt that fails is not to blame: the shortest of the others fails too."""
        if self._has_explained:
            return
        others = (other for other in reversed(range(len(self))) if other != place and self._lengths[self._order[other]])
        other = next(others, None)
        if other is None:
            return
        try:
            self._explain_batch(range(other, other + 1))
        except Exception as other_error:
            raise InvalidInputError(f"No prompt can be explained with these arguments: {other_error}") from error
