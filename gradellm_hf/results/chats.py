"""Prompts as the model reads them; the explanation of a chat knows where its messages are."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks.arguments import is_list
from ..checks.schema import short
from ..errors import InvalidInputError
from ..text.chats import Chat, is_chat
from ..text.encoding import TEMPLATE_OPTIONS, encode_prompt, template_options, text_tokenizer
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


def encoded_prompts(tokenizer: Any, prompts: Sequence[str | Chat], options: Mapping[str, Any]) -> list[EncodedPrompt]:
    """The prompts as the model reads them.

    Args:
        tokenizer: That of a processor is taken.
        options: Of `TEMPLATE_OPTIONS`; None if not given.

    Raises:
        InvalidInputError: As `encode_prompt`.
    """
    tokenizer, given = text_tokenizer(tokenizer), {name: value for name, value in options.items() if value is not None}
    return [EncodedPrompt(prompt, given, encode_prompt(tokenizer, prompt, given)) for prompt in prompts]


def of_chats(explanations: Sequence[Explanation], tokenizer: Any, chats: Any, options: Mapping[str, Any]) -> list[Explanation]:
    """The explanations of one or several answers to each chat, which know its messages.

    Raises:
        InvalidInputError: There are not as many chats as prompts, an option is unknown, or a prompt is not what the template
            makes of its chat.
    """
    chats = [chats] if is_chat(chats) else chats
    if not is_list(chats) or not chats or len(explanations) % len(chats):
        raise InvalidInputError(
            f"`chats` must be a list with the chat (or text) of each prompt, and {len(explanations)} rows are explained; got "
            f"{short(chats)}."
        )
    if unknown := sorted(options.keys() - set(TEMPLATE_OPTIONS)):
        raise InvalidInputError(f"A chat template is given {list(TEMPLATE_OPTIONS)}, not {unknown}.")
    each = len(explanations) // len(chats)
    return [_of_chat(row, explanation, tokenizer, chats[row // each], options) for row, explanation in enumerate(explanations)]


def _of_chat(row: int, explanation: Explanation, tokenizer: Any, chat: str | Chat, options: Mapping[str, Any]) -> Explanation:
    if isinstance(chat, str):
        return explanation
    (asked,) = encoded_prompts(tokenizer, [chat], options)
    if explanation.token_ids is None or explanation.token_ids[: explanation.prompt_length] != asked.ids:
        raise InvalidInputError(
            f"The prompt of row {row} is not what the template makes of its chat. It begins {explanation.text[:40]!r}; the "
            f"template's {asked.encoded[0][:40]!r}. Give the chats in the order of the prompts, and what the template was "
            "given (`tools`, `chat_template`, ...)."
        )
    return with_segments(explanation, text_tokenizer(tokenizer), asked)


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
