"""Scores of tokens on the pixels of a picture."""

import pytest
import torch

from gradellm_hf import InvalidInputError
from gradellm_hf.images import ImagePatches
from gradellm_hf.images.views import Region, View, boxes_of, tiles, whole


def test_scores_are_spread_over_pixels_and_added_up_where_parts_overlap():
    boxes = torch.tensor([[0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 4, 2], [0, 0, 0, 0]])
    image = ImagePatches([1, 2, 3, 9], (2, 4), boxes)
    heatmap = image.spread(torch.tensor([4.0, 8.0, 8.0, 100.0]))
    assert heatmap.tolist() == [[2, 2, 3, 3]] * 2
    assert list(image.extent) == list(range(1, 10))


def test_pixels_that_are_cut_have_their_share_by_area():
    image = ImagePatches([0, 1], (1, 3), torch.tensor([[0, 0, 1.5, 1], [1.5, 0, 3, 1]]))
    assert image.spread(torch.tensor([3.0, 0.0])).tolist() == [[2, 1, 0]]


def test_negative_scores_stay_so():
    image = ImagePatches([0, 1], (1, 2), torch.tensor([[0, 0, 1, 1], [1, 0, 2, 1]]))
    assert image.spread(torch.tensor([-1.0, 2.0])).tolist() == [[-1, 2]]


def test_what_is_not_known_is_not_drawn():
    with pytest.raises(InvalidInputError, match="not known which part of the picture"):
        ImagePatches([0], (4, 4)).spread(torch.ones(1))
    with pytest.raises(InvalidInputError, match=r"shape \[T\] = \[1\], got \[2\]"):
        ImagePatches([0], (4, 4), torch.zeros(1, 4)).spread(torch.ones(2))


def test_views_are_cut_row_after_row_and_to_the_picture():
    size = (20, 40)
    padded = View(Region(0, -10, 40, 30), 4, 2)  # a square around it
    boxes = boxes_of([padded, View(None, 1, 1), View(whole(size), 1, 2, breaks=1)], size)
    assert boxes[:2].abs().sum() == 0
    assert boxes[2].tolist() == [0, 0, 20, 10]
    assert boxes[5].tolist() == [20, 10, 40, 20]
    assert boxes[8:].tolist() == [[0] * 4, [0, 0, 20, 20], [20, 0, 40, 20], [0] * 4]
    assert tiles(whole(size), 2, 2)[2] == Region(0, 10, 20, 20)
