"""From prompts to what a model reads, and from what it wrote to explanations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..architecture.facts import look_at
from ..architecture.support import unwrap
from ..checks.arguments import is_list
from ..errors import InvalidInputError
from ..results.chats import EncodedPrompt, encoded_prompts, with_segments
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

    def encoded(self, prompts: Sequence[str | Chat], options: Mapping[str, Any]) -> list[EncodedPrompt]:
        """The prompts as the model reads them. `options`: of the chat template; None if not given."""
        return encoded_prompts(self.tokenizer, prompts, options)

    def batch(self, asked: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """The prompts as arguments of `generate`: `input_ids` and `attention_mask` `[R, P]`, padded on the left."""
        ids, mask = self.padded([prompt.ids for prompt in asked])
        return {"input_ids": ids, "attention_mask": mask}

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
        return [with_segments(row, tokenizer, asked[i // each]) for i, row in enumerate(out.explanations(tokenizer))]


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
