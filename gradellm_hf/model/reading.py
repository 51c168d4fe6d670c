"""From prompts to what a model reads, and from what it wrote to explanations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..architecture.facts import look_at
from ..architecture.support import unwrap
from ..checks.arguments import is_list
from ..errors import InvalidInputError
from ..results.chats import EncodedPrompt, encoded_prompts, image_positions, with_prompt
from ..results.explanation import Explanation
from ..results.output import ExplainGenerateOutput
from ..sequences.text_batch import padded_batch
from ..text.chats import Chat, is_chat
from ..text.encoding import text_tokenizer


@dataclass(frozen=True)
class Reading:
    """A model, and the tokenizer or processor that it reads with; None if there is none."""

    model: Any
    tokenizer: Any

    @property
    def text_tokenizer(self) -> Any:
        """The tokenizer, also of a processor; raises InvalidInputError if there is none."""
        return text_tokenizer(self.tokenizer)

    def encoded(
        self,
        prompts: Sequence[str | Chat],
        options: Mapping[str, Any],
        pictures: Sequence[Sequence[Any]] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> list[EncodedPrompt]:
        """The prompts as the model reads them; see `encoded_prompts`."""
        return encoded_prompts(self.tokenizer, prompts, options, pictures, given)

    def batch(self, asked: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """The prompts as arguments of `generate`: `input_ids` and `attention_mask` `[R, P]`, padded on the left.

        A prompt with images is a batch of its own, with what its processor returned.
        """
        if any(prompt.images for prompt in asked):
            (prompt,) = asked
            return self._with_images(prompt)
        ids, mask = self.padded([prompt.ids for prompt in asked])
        return {"input_ids": ids, "attention_mask": mask}

    def _with_images(self, prompt: EncodedPrompt) -> dict[str, Any]:
        facts, inputs = look_at(self.model), dict(prompt.images.inputs if prompt.images else {})
        shape, more = inputs["input_ids"].shape, torch.tensor([prompt.begun], dtype=torch.long)
        for name, value in inputs.items():
            if value.shape == shape:  # token types, too: what is begun is text
                added = more if name == "input_ids" else torch.full_like(more, int(name == "attention_mask"))
                value = torch.cat([value, added.to(value.dtype)], dim=1)
            dtype = facts.model.dtype if value.is_floating_point() else value.dtype
            inputs[name] = value.to(facts.input_device, dtype)
        return inputs

    def padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, padded on the left, on the device on which the model reads them."""
        return padded_batch(look_at(self.model), rows, self.text_tokenizer.pad_token_id)

    def generate_kwargs(self, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `generate`, with the tokenizer among them if `generate` needs one to find `stop_strings`."""
        if self.tokenizer is None or "tokenizer" in given:
            return given
        configs = (given.get("generation_config"), unwrap(self.model).generation_config)
        strings = [given["stop_strings"]] if "stop_strings" in given else []
        if all(x is None for x in strings or [getattr(config, "stop_strings", None) for config in configs]):
            return given
        return {**given, "tokenizer": self.text_tokenizer}

    def explanations(self, out: ExplainGenerateOutput, asked: Sequence[EncodedPrompt]) -> list[Explanation]:
        """The rows of an output, which know the messages of the chats that they are of."""
        tokenizer = self.text_tokenizer
        each = len(out.attributions) // len(asked)
        return [
            with_prompt(row, tokenizer, asked[i // each], image_positions(out, i))
            for i, row in enumerate(out.explanations(tokenizer))
        ]


def in_batches(asked: Sequence[EncodedPrompt]) -> list[list[EncodedPrompt]]:
    """What is read together: prompts without images, if there are no others; else each prompt by itself."""
    return [[prompt] for prompt in asked] if any(prompt.images for prompt in asked) else [list(asked)]


def pictures_beside(images: Any, prompts: Sequence[str | Chat], is_single: bool) -> list[list[Any]]:
    """The pictures that are given beside each prompt.

    Args:
        images: For a single prompt a picture or a list of them; for a list of prompts a list with as many of these.
        prompts: The prompts.
        is_single: Whether a single one was given rather than a list.

    Raises:
        InvalidInputError: They are not as many as the prompts.
    """
    if images is None:
        return [[] for _ in prompts]
    each = [images] if is_single else images
    if not is_list(each) or len(each) != len(prompts):
        raise InvalidInputError(
            f"`images` must hold the pictures of each of the {len(prompts)} prompts: a list of as many pictures, or lists of "
            "them."
        )
    return [list(own) if is_list(own) else [] if own is None else [own] for own in each]


def prompts_of(text: Any) -> tuple[list[str | Chat], bool]:
    """The prompts, and whether a single one was given rather than a list."""
    is_single = isinstance(text, str) or is_chat(text)
    prompts = [text] if is_single else list(text) if is_list(text) else []
    if not prompts or not all(isinstance(prompt, str) or is_chat(prompt) for prompt in prompts):
        raise InvalidInputError(
            'Give a text, a chat [{"role": "user", "content": ...}, ...], or a list of texts or chats with at least one in it; '
            f"got {text!r}."
        )
    return prompts, is_single
