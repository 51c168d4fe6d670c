"""What a chat is: messages, each with a role and a content of text, and of images where these can be read."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..checks.arguments import is_list
from ..errors import InvalidInputError

Chat = Sequence[Mapping[str, Any]]
_EXPECTED = 'a message is {"role": ..., "content": ...}, its content a text or a list of parts {"type": "text", "text": ...}'
_MEDIA = ("image", "video", "audio")


def is_chat(value: Any) -> bool:
    """Whether it has the form of a chat: a list of mappings, at least one."""
    return is_list(value) and len(value) > 0 and all(isinstance(message, Mapping) for message in value)


def check_chat(chat: Any, *, images: bool = False) -> None:
    """Refuses a chat that holds anything but text. A chat template would silently leave it out, or write a placeholder for it.

    Args:
        chat: The chat.
        images: Whether it may hold images, as parts `{"type": "image", ...}` or `{"type": "image_url", ...}`.

    Raises:
        InvalidInputError: It is no list of messages; a message has no role or content; or a part of a content is an image, a
            video, a sound, or anything else that is not text.
    """
    if not is_chat(chat):
        raise InvalidInputError(f"A chat is a list of messages with at least one in it, and {_EXPECTED}; got {chat!r}.")
    for number, message in enumerate(chat):
        _check_message(number, message, images)


def is_image_part(part: Any) -> bool:
    """Whether it is a part `{"type": "image", ...}` or `{"type": "image_url", ...}` of the content of a message."""
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url")


def image_parts(chat: Any) -> list[Mapping[str, Any]]:
    """The images of a chat, in order."""
    contents = [message.get("content") for message in chat if isinstance(message, Mapping)]
    return [part for content in contents if is_list(content) for part in content or () if is_image_part(part)]


def without_pictures(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chat as templates want it: each image is `{"type": "image"}`."""
    return [
        {**message, "content": [{"type": "image"} if is_image_part(part) else part for part in message["content"]]}
        if is_list(message.get("content"))
        else dict(message)
        for message in chat
    ]


def _check_message(number: int, message: Mapping[str, Any], images: bool) -> None:
    where = f"Message {number} of the chat"
    _check_media(where, message)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise InvalidInputError(f"{where} has no `role`: {_EXPECTED}; got {dict(message)!r}.")
    if content is not None and is_list(content):
        for part in content:
            if not isinstance(part, Mapping):
                raise InvalidInputError(f"{where} has a part that is no dict: {_EXPECTED}; got {part!r}.")
            if images and is_image_part(part):
                continue
            _check_media(where, part)
            if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
                raise InvalidInputError(f"{where} has a part that is not text: {_EXPECTED}; got {dict(part)!r}.")
    elif content is None:
        if not any(value for name, value in message.items() if name != "role"):  # such as the calls of tools
            raise InvalidInputError(f"{where} has no `content`: {_EXPECTED}; got {dict(message)!r}.")
    elif not isinstance(content, str):
        _check_media(where, content if isinstance(content, Mapping) else {})
        raise InvalidInputError(f"{where} has a `content` of {type(content).__name__}: {_EXPECTED}.")


def _check_media(where: str, part: Mapping[str, Any]) -> None:
    """Looks for `{"type": "image"}`, `{"image": ...}`, `{"type": "image_url"}`, `{"input_audio": ...}` and the like."""
    kind = part.get("type")
    names = [name for name, value in part.items() if value is not None] + [kind if isinstance(kind, str) else ""]
    found = next((medium for name in names for medium in _MEDIA if medium in str(name)), None)
    if found is not None:
        raise InvalidInputError(
            f"{where} holds {'an' if found[0] in 'aeiou' else 'a'} {found}, which is not read here. Images are read from the "
            'content of messages, as {"type": "image", "image": picture}, by `GradELLM.explain` with the model\'s processor in '
            "place of its tokenizer. Take anything else out; or give what the processor makes of the chat, as tensors, to "
            "`explain_generate`."
        )
