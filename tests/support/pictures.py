"""Pictures with one coloured square, made from numbers."""

import numpy
from PIL import Image

COLOURS = {"red": (230, 40, 30), "green": (30, 190, 60), "blue": (40, 60, 230)}


def square_on_grey(size: tuple[int, int], box: tuple[int, int, int, int], colour: str, seed: int = 0) -> Image.Image:
    """Grey noise of a height and width with a square: left, top, right, bottom."""
    grey = numpy.random.default_rng(seed).integers(110, 130, size)
    pixels = numpy.repeat(grey[..., None], 3, axis=-1).astype(numpy.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = COLOURS[colour]
    return Image.fromarray(pixels)
