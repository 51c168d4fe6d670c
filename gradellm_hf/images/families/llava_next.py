"""LLaVA-NeXT: the whole picture as a square, then tiles in its own shape without padding; a token ends each row."""

import math

from ..picture import ReadPicture
from ..views import Region, View, whole


def layout(read: ReadPicture) -> list[View]:
    from transformers.image_processing_utils import select_best_resolution  # which imports the code of models

    processor, (height, width), (side, _) = read.settings.processor, read.size, read.frame
    num = side // processor.patch_size
    classes = (processor.num_additional_image_tokens or 0) - (processor.vision_feature_select_strategy == "default")
    views = [View(None, 1, classes)] * (classes > 0) + [View(whole(read.size), num, num)]
    canvas_height, canvas_width = select_best_resolution((height, width), read.settings.get("image_grid_pinpoints"))
    rows, columns = canvas_height // side * num, canvas_width // side * num
    scale = min(canvas_width / width, canvas_height / height)
    inner_height, inner_width = min(canvas_height, math.ceil(height * scale)), min(canvas_width, math.ceil(width * scale))
    top, left = (canvas_height - inner_height) // 2, (canvas_width - inner_width) // 2
    x, y = width / inner_width, height / inner_height  # pixels of the picture in one of the canvas
    canvas = Region(-left * x, -top * y, (canvas_width - left) * x, (canvas_height - top) * y)
    above = beside = 0  # rows and columns of padding, which are left out on both sides
    if width / height > columns / rows:
        above = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        beside = (columns - int(round(width * (rows / height), 7))) // 2
    region = canvas.part(beside / columns, above / rows, 1 - beside / columns, 1 - above / rows)
    return [*views, View(region, rows - 2 * above, columns - 2 * beside, breaks=1)]
