"""Qwen2-VL, 2.5 and 3: the whole picture in its own shape; a token is a square of merged patches."""

from ..picture import ReadPicture
from ..views import View, whole


def layout(read: ReadPicture) -> list[View]:
    merge = read.settings.get("merge_size")
    _, rows, columns = (int(number) for number in read.inputs["image_grid_thw"][read.index])
    return [View(whole(read.size), rows // merge, columns // merge)]
