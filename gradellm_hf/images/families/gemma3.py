"""Gemma 3: the whole picture as a square of pooled patches; then crops of a long one, if pan and scan is on."""

import math

from ..picture import ReadPicture
from ..views import Region, View, whole


def layout(read: ReadPicture) -> list[View]:
    side = read.square("image_seq_length")
    regions = [whole(read.size), *(_crops(read) if read.settings.get("do_pan_and_scan") else [])]
    return [View(region, side, side) for region in regions]


def _crops(read: ReadPicture) -> list[Region]:
    """Crops along the longer side; the last one ends with the picture."""
    (height, width), settings = read.size, read.settings
    longest, shortest, least = max(read.size), min(read.size), settings.get("pan_and_scan_min_crop_size")
    if longest / shortest < settings.get("pan_and_scan_min_ratio_to_activate"):
        return []
    number = max(2, min(longest // least, math.floor(longest / shortest + 0.5)))
    number = min(settings.get("pan_and_scan_max_num_crops"), number)
    step = math.ceil(longest / number)
    if min(step, shortest) < least:
        return []
    ends = [(step * i, min(step * (i + 1), longest)) for i in range(number)]
    if width >= height:
        return [Region(start, 0, end, height) for start, end in ends]
    return [Region(0, start, width, end) for start, end in ends]
