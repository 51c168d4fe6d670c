"""What a model sees of a picture: one or several views, each cut into a grid of tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Size = tuple[int, int]
"""Height and width, in pixels."""


class Region(NamedTuple):
    """A part of a picture, in its own pixels. It reaches beyond the picture where it was padded."""

    left: float
    top: float
    right: float
    bottom: float

    def part(self, left: float, top: float, right: float, bottom: float) -> "Region":
        """A part of the region; 0 and 1 are its own borders."""
        width, height = self.right - self.left, self.bottom - self.top
        return Region(self.left + left * width, self.top + top * height, self.left + right * width, self.top + bottom * height)


class View(NamedTuple):
    """A region of the picture, cut into `rows` x `columns` tokens, row after row.

    Attributes:
        region: None: the tokens stand for no part of the picture.
        rows, columns: Of the grid.
        breaks: Tokens at the end of each row that stand for no part of the picture.
    """

    region: Region | None
    rows: int
    columns: int
    breaks: int = 0


def whole(size: Size) -> Region:
    """All of a picture."""
    return Region(0, 0, size[1], size[0])


def tiles(region: Region, rows: int, columns: int) -> list[Region]:
    """Equal parts of a region, row after row."""
    return [
        region.part(column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def boxes_of(views: Sequence[View], size: Size) -> Tensor:
    """Where each token lies: left, top, right and bottom in pixels of the picture, `[T, 4]` float32.

    What reaches beyond the picture is cut off. A token without pixels, such as the end of a row or a patch of padding, has an
    empty box, of zeros.
    """
    found: list[tuple[float, ...]] = []
    for view in views:
        nothing = [(0.0,) * 4]
        cells = nothing * view.rows * view.columns if view.region is None else tiles(view.region, view.rows, view.columns)
        for row in range(view.rows):
            found += cells[row * view.columns : (row + 1) * view.columns]
            found += nothing * view.breaks
    boxes = torch.tensor(found, dtype=torch.float64).reshape(-1, 4)
    height, width = size
    boxes = boxes.clamp_min(0).minimum(boxes.new_tensor([width, height, width, height]))
    is_empty = (boxes[:, 2:] - boxes[:, :2]).amin(-1) <= 1e-6
    return boxes.masked_fill(is_empty[:, None], 0).float()
