"""The pictures of chats and prompts, as PIL images."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..checks.optional import needed_for
from ..errors import InvalidInputError
from ..text.chats import image_parts

_PLACES = ("image", "url", "path", "base64")  # in which a part of a chat may hold its picture


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
