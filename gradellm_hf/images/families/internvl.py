"""InternVL: tiles of a picture that is stretched to whole tiles, then the whole picture as one more, if there are several."""

import sys
from typing import Any

from ..picture import ReadPicture
from ..views import View, tiles, whole


def layout(read: ReadPicture) -> list[View]:
    side = read.square("image_seq_length")
    regions = [whole(read.size)]
    if read.settings.get("crop_to_patches") and read.settings.get("max_patches") > 1:
        size = read.settings.size("size")
        limits = read.settings.get("min_patches"), read.settings.get("max_patches")
        canvas = _own("get_optimal_tiled_canvas", read.settings.processor.image_processor)
        columns, rows = canvas(read.size, (size["height"], size["width"]), *limits)
        if rows * columns > 1:
            regions = [*tiles(whole(read.size), rows, columns), *regions]
    return [View(region, side, side) for region in regions]


def _own(name: str, image_processor: Any) -> Any:
    """A function of the module that an image processor, or one above it, is of: the file is another in each version."""
    modules = (vars(sys.modules[kind.__module__]) for kind in type(image_processor).__mro__)
    return next(module[name] for module in modules if name in module)
