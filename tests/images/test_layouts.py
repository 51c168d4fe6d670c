"""A token stands for the pixels that change it: through the real processor and the real vision tower of each family."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from gradellm_hf.images import ImagePatches
from gradellm_hf.images.layouts import boxes_in
from gradellm_hf.images.picture import ReadPicture
from gradellm_hf.images.settings import Settings
from gradellm_hf.results.chats import encoded_prompts
from tests.support.tiny_processors import FAMILIES, decoder_inputs, image_token_id, model_of, processor_of, without_mixing

#: Height and width: landscape, long and portrait, smaller than a frame.
SIZES = [(90, 132), (250, 60), (13, 13)]
OTHER = (70, 50)


def seen(family: str, pictures: list[Image.Image], given: dict[str, Any] | None = None) -> tuple[Tensor, list[ImagePatches]]:
    """What the model's decoder gets for the tokens of the images, `[T, D]`, and where these are said to lie."""
    model, content = model_of(family), [{"type": "image", "image": picture} for picture in pictures]
    chat = [{"role": "user", "content": [*content[:1], {"type": "text", "text": "and"}, *content[1:]]}]
    (prompt,) = encoded_prompts(processor_of(family), [chat], {}, given=given)
    positions = [i for i, token in enumerate(prompt.ids) if token == image_token_id(family)]
    with without_mixing(model):
        return decoder_inputs(model, prompt.images.inputs)[0, positions], prompt.images.patches(positions)


def painted(size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> Image.Image:
    pixels = numpy.full((*size, 3), 90, dtype=numpy.uint8)
    if box is not None:
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = (250, 200, 160)
    return Image.fromarray(pixels)


def middle(box: Tensor) -> tuple[int, int, int, int]:
    """The middle of a box, whole pixels, at least one."""
    left, top, right, bottom = box.tolist()
    x, y = (right - left) / 4, (bottom - top) / 4
    inner = [round(left + x), round(top + y), round(right - x), round(bottom - y)]
    inner[0], inner[1] = min(inner[0], int((left + right) / 2)), min(inner[1], int((top + bottom) / 2))
    return inner[0], inner[1], max(inner[2], inner[0] + 1), max(inner[3], inner[1] + 1)


def assert_pixels_are_where_they_are_said_to_be(
    family: str, size: tuple[int, int], given: dict[str, Any] | None = None, most: int = 3
) -> ImagePatches:
    """Paints the middle of one box after the other; the second of two pictures."""
    before, (first, image) = seen(family, [painted(OTHER), painted(size)], given)
    boxes, count = image.boxes, len(first.positions)
    assert len(before) == count + len(image.positions)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    visible = (areas > 0.3 * areas.median()).nonzero().flatten()  # at the edge of a padded picture some are slivers
    chosen = visible[torch.linspace(0, len(visible) - 1, min(most, len(visible))).round().long()]
    for token in chosen.tolist():
        paint = middle(boxes[token])
        after, _ = seen(family, [painted(OTHER), painted(size, paint)], given)
        change = (after - before).norm(dim=-1)
        assert not change[:count].any()  # the other picture
        change = change[count:]
        left, top, right, bottom = boxes.T
        overlaps = (left < paint[2]) & (right > paint[0]) & (top < paint[3]) & (bottom > paint[1])
        alike = areas.div(areas[token]).log().abs() < 0.5  # of tiles, not of the smaller picture, or the reverse
        strongest = change.masked_fill(~alike, 0).argmax()
        assert change[strongest] > 0
        assert torch.equal(boxes[strongest], boxes[token])
        assert overlaps[change > 0.4 * change.max()].all()
        x, y = (right - left).max(), (bottom - top).max()  # resizing blurs into the neighbours
        reached = (left - x < paint[2]) & (right + x > paint[0]) & (top - y < paint[3]) & (bottom + y > paint[1])
        assert (change[~reached] < 1e-3 * change.max()).all()
    return image


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_lies_on_the_pixels_that_change_it(family, size):
    image = assert_pixels_are_where_they_are_said_to_be(family, size)
    assert image.size == size


@pytest.mark.parametrize(
    ("family", "size", "given", "tokens"),
    [
        ("gemma3", (40, 110), {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 32}, 4 * 16),
        ("gemma3", (130, 41), {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 32}, 4 * 16),
        ("gemma3", (40, 42), {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 32}, 16),
        ("idefics3", (40, 110), {"do_image_splitting": False}, 4),
        ("internvl", (40, 110), {"crop_to_patches": False}, 4),
        ("internvl", (40, 110), {"max_patches": 3}, 4 * 4),
        ("llava", (40, 110), {"do_pad": True, "do_center_crop": False, "size": {"height": 16, "width": 16}}, 16),
        ("llava", (110, 40), {"do_center_crop": False, "size": {"height": 16, "width": 16}}, 16),
        ("qwen2_vl", (40, 110), {"size": {"shortest_edge": 64, "longest_edge": 512}}, 4),
    ],
)
def test_what_the_processor_is_told_changes_where_tokens_lie(family, size, given, tokens):
    image = assert_pixels_are_where_they_are_said_to_be(family, size, given)
    assert len(image.positions) == tokens


def test_patches_of_padding_have_no_pixels_and_their_scores_are_not_drawn():
    given = {"do_pad": True, "do_center_crop": False, "size": {"height": 16, "width": 16}}
    _, (image,) = seen("llava", [painted((20, 80))], given)
    is_empty = (image.boxes == 0).all(-1).view(4, 4)
    assert is_empty.tolist() == [[True] * 4, [False] * 4, [False] * 4, [True] * 4]
    assert image.boxes[4].tolist() == [0, 0, 20, 10]
    assert image.spread(torch.arange(16.0)).sum() == pytest.approx(sum(range(4, 12)))


def test_the_ends_of_rows_in_llava_next_have_no_pixels():
    _, (image,) = seen("llava_next", [painted((64, 64))])
    assert (image.boxes[16:].view(8, 9, 4)[:, -1] == 0).all()
    assert (image.boxes[16:].view(8, 9, 4)[:, :-1].amax(-1) > 0).all()


def test_a_token_before_the_patches_has_no_pixels():
    processor = processor_of("llava")
    settings = Settings(processor, {})
    read = ReadPicture((40, 40), settings, {"pixel_values": torch.zeros(1, 3, 16, 16)}, 0)
    with patch.object(processor, "vision_feature_select_strategy", "full"):
        (boxes,) = boxes_in([read], 17)
    assert boxes[0].tolist() == [0] * 4
    assert boxes[1].tolist() == [0, 0, 10, 10]


class Unknown:
    """A processor of a family without a layout."""

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor


def test_other_processors_are_taken_for_squares_if_they_can_be():
    image_processor = SimpleNamespace(do_resize=True, size={"height": 24, "width": 24})
    reads = [
        ReadPicture(size, Settings(Unknown(image_processor), {}), {"pixel_values": torch.zeros(2, 3, 24, 24)}, index)
        for index, size in enumerate([(30, 60), (12, 12)])
    ]
    first, second = boxes_in(reads, 18)
    assert first[5].tolist() == [40, 10, 60, 20]
    assert second[0].tolist() == [0, 0, 4, 4]
    assert boxes_in(reads, 16 + 4) is None  # not squares
    assert boxes_in([read._replace(inputs={"pixel_values": torch.zeros(100, 12)}) for read in reads], 18) is None


def test_a_layout_that_does_not_fit_the_prompt_is_not_believed():
    read = ReadPicture((40, 40), Settings(processor_of("gemma3"), {}), {"pixel_values": torch.zeros(1, 3, 16, 16)}, 0)
    assert boxes_in([read], 5) is None
