"""Mistral 3 and Pixtral: the whole picture in its own shape; a token is a square of merged patches. [IMG_BREAK] is text."""

from ..picture import ReadPicture
from ..views import View, whole


def layout(read: ReadPicture) -> list[View]:
    processor = read.settings.processor
    side = processor.patch_size * processor.spatial_merge_size
    height, width = (int(number) for number in read.inputs["image_sizes"][read.index])
    return [View(whole(read.size), height // side, width // side)]
