"""The explanation of a chat knows where its messages are."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..text.chats import Chat
from ..text.encoding import template_options
from ..text.segments import chat_segments, placed
from .explanation import Explanation


def with_segments(
    explanation: Explanation, tokenizer: Any, prompt: str | Chat, rendered: str, options: Mapping[str, Any]
) -> Explanation:
    """The explanation with the messages of the chat that it is of; as it is, if the prompt is a text.

    Args:
        rendered: The text that the template made of the chat.
        options: For the template, as given.
    """
    if isinstance(prompt, str):
        return explanation
    segments = chat_segments(tokenizer, prompt, rendered, template_options(tokenizer, prompt, options))
    decoded = "".join(explanation.tokens[: explanation.prompt_length])
    return dataclasses.replace(explanation, segments=None if segments is None else placed(segments, rendered, decoded))
