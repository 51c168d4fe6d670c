"""A picture as a processor has read it: what a family's layout is worked out from."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .settings import Settings
from .views import Region, Size, View, whole


class ReadPicture(NamedTuple):
    """A picture, and what a processor made of it.

    Attributes:
        size: Of the picture itself.
        settings: Of the processor.
        inputs: What the processor returned for the prompt.
        index: Which of the prompt's pictures it is.
    """

    size: Size
    settings: Settings
    inputs: Mapping[str, Any]
    index: int  # type: ignore[assignment]  # a tuple's own `index` is not used

    @property
    def frame(self) -> Size:
        """Height and width of what the model reads, in its own pixels."""
        *_, height, width = self.inputs["pixel_values"][0].shape
        return int(height), int(width)

    def square(self, setting: str) -> int:
        """The side of a square of tokens, of which a setting of the processor has the number."""
        return math.isqrt(getattr(self.settings.processor, setting))


def framed(read: ReadPicture) -> Region:
    """What is seen of a picture that is padded to a square, resized and cut at its centre, each if the settings say so."""
    height, width = read.size
    region = whole(read.size)
    if read.settings.get("do_pad"):
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        region, height, width = Region(-left, -top, side - left, side - top), side, side
    if read.settings.get("do_resize"):
        height, width = resized((height, width), read.settings.size("size"))
    if read.settings.get("do_center_crop"):
        crop = read.settings.size("crop_size")
        top, left = (height - crop["height"]) // 2, (width - crop["width"]) // 2
        region = region.part(left / width, top / height, (left + crop["width"]) / width, (top + crop["height"]) / height)
    return region


def resized(size: Size, target: Mapping[str, int]) -> Size:
    """The size of a picture after it is resized: to a height and width, or so that its shortest edge has a length."""
    height, width = size
    shortest = target.get("shortest_edge")
    if shortest is None:
        return target["height"], target["width"]
    longest = int(shortest * max(size) / min(size))
    return (longest, shortest) if height > width else (shortest, longest)


def patched(region: Region, frame: Size, patch: int) -> View:
    """Whole patches of a frame; what is left at its right and lower edge is not read."""
    rows, columns = frame[0] // patch, frame[1] // patch
    return View(region.part(0, 0, columns * patch / frame[1], rows * patch / frame[0]), rows, columns)
