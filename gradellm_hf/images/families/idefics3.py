"""Idefics3 and SmolVLM: tiles of a picture that is stretched to whole tiles, then the whole picture as one more."""

import math

from ..picture import ReadPicture
from ..views import Size, View, tiles, whole

_LARGEST = 4096  # pixels of the longer side, whatever the settings say


def layout(read: ReadPicture) -> list[View]:
    side = read.square("image_seq_len")
    rows, columns = _splits(read)
    parts = tiles(whole(read.size), rows, columns) if rows * columns > 1 else []
    return [View(region, side, side) for region in [*parts, whole(read.size)]]


def _splits(read: ReadPicture) -> tuple[int, int]:
    """Rows and columns of tiles; 1 and 1 if the picture is not split."""
    if not read.settings.get("do_image_splitting"):
        return 1, 1
    size = read.size
    if read.settings.get("do_resize"):
        size = _to_longest(size, read.settings.size("size"))
    tile = read.settings.size("max_image_size")["longest_edge"]
    height, width = size
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / ratio) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * ratio) / tile) * tile
    return height // tile, width // tile


def _to_longest(size: Size, target: dict[str, int]) -> Size:
    """The size after the longer side is resized; the shorter one becomes even."""
    if "longest_edge" not in target:
        return target["height"], target["width"]
    (height, width), longest = size, target["longest_edge"]
    ratio = width / height
    if width >= height:
        height = int(longest / ratio)
        size = max(height + height % 2, 1), longest
    else:
        width = int(longest * ratio)
        size = longest, max(width + width % 2, 1)
    if longest <= _LARGEST:
        return size
    height, width = size
    ratio = width / height
    return (max(int(_LARGEST / ratio), 1), _LARGEST) if width >= height else (_LARGEST, max(int(_LARGEST * ratio), 1))
