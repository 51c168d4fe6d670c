"""The pictures of chats and prompts, as PIL images."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..checks.arguments import is_list
from ..checks.optional import needed_for
from ..errors import InvalidInputError

_PLACES = ("image", "url", "path", "base64")  # in which a part of a chat may hold its picture


def is_image_part(part: Any) -> bool:
    """Whether it is a part `{"type": "image", ...}` or `{"type": "image_url", ...}` of the content of a message."""
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url")


def image_parts(chat: Any) -> list[Mapping[str, Any]]:
    """The images of a chat, in order."""
    contents = [message.get("content") for message in chat if isinstance(message, Mapping)]
    return [part for content in contents if is_list(content) for part in content if is_image_part(part)]


def without_pictures(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chat as templates want it: each image is `{"type": "image"}`."""
    return [
        {**message, "content": [{"type": "image"} if is_image_part(part) else part for part in message["content"]]}
        if is_list(message.get("content"))
        else dict(message)
        for message in chat
    ]


def pictures_of(prompt: Any, given: Sequence[Any]) -> list[Any]:
    """The pictures of a prompt, loaded.

    Args:
        prompt: A text or a chat.
        given: Pictures beside it: those of a text, or of the parts `{"type": "image"}` of a chat that hold none.

    Raises:
        InvalidInputError: There are more of them than places, or fewer; or one cannot be loaded.
    """
    if isinstance(prompt, str):
        return [_loaded(picture) for picture in given]
    left, found = list(given), []
    for part in image_parts(prompt):
        inside = next((part[place] for place in _PLACES if part.get(place) is not None), part.get("image_url"))
        inside = inside.get("url") if isinstance(inside, Mapping) else inside
        if inside is None and not left:
            raise InvalidInputError(
                'The chat has an image without a picture. Put it into the part, {"type": "image", "image": picture}, or give '
                "`images`, one for each such part."
            )
        found.append(_loaded(left.pop(0) if inside is None else inside))
    if left:
        raise InvalidInputError(
            f"`images` holds {len(given)} pictures, but only {len(given) - len(left)} images of the chat have none. Add "
            '{"type": "image"} parts, or leave pictures out.'
        )
    return found


def _loaded(picture: Any) -> Any:
    """A PIL image in RGB from one, an array `[H, W, C]`, a path, a URL or base64."""
    with needed_for("Pictures need", "pillow"):
        from PIL import Image
    from transformers.image_utils import load_image

    try:
        if not isinstance(picture, Image.Image) and hasattr(picture, "__array__"):
            return Image.fromarray(picture.__array__()).convert("RGB")
        return load_image(picture)  # in RGB, and upright
    except Exception as error:
        raise InvalidInputError(
            f"A picture cannot be loaded: {error} Give a PIL image, an array of bytes [height, width, 3], a path or a URL."
        ) from error
