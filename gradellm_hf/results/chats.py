"""Prompts as the model reads them; the explanation of a chat knows where its messages are."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..text.chats import Chat
from ..text.encoding import template_options
from ..text.segments import Segment, chat_segments, placed
from .explanation import Explanation


@dataclass(frozen=True)
class EncodedPrompt:
    """A text or chat, and what the model reads.

    Attributes:
        prompt: As given.
        options: Of the chat template, as given.
        encoded: What `encode_prompt` returned.
        begun: Tokens of an answer that are given too.
    """

    prompt: str | Chat
    options: Mapping[str, Any]
    encoded: tuple[str, bool, list[int]]
    begun: tuple[int, ...] = ()

    @property
    def ids(self) -> list[int]:
        """All that the model reads."""
        return [*self.encoded[2], *self.begun]

    def continued(self, token_ids: list[int]) -> "EncodedPrompt":
        """The same with the beginning of an answer."""
        return dataclasses.replace(self, begun=tuple(token_ids))


def with_segments(explanation: Explanation, tokenizer: Any, asked: EncodedPrompt) -> Explanation:
    """The explanation with the messages of the chat that it is of; as it is, if the prompt is a text."""
    prompt, (rendered, *_) = asked.prompt, asked.encoded
    if isinstance(prompt, str):
        return explanation
    segments = chat_segments(tokenizer, prompt, rendered, template_options(tokenizer, prompt, asked.options))
    border = explanation.prompt_length - len(asked.begun)
    decoded = "".join(explanation.tokens[:border])
    segments = None if segments is None else placed(segments, rendered, decoded)
    if segments is not None and (begun := "".join(explanation.tokens[border : explanation.prompt_length])).strip():
        start, end = len(decoded) + len(begun) - len(begun.lstrip()), len(decoded) + len(begun.rstrip())
        segments = [*segments, Segment(name="begun answer", role="assistant", start=start, end=end)]
    return dataclasses.replace(explanation, segments=segments)
