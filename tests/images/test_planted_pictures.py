"""Models that name the colour of one square of a picture: its patch ranks first, and is drawn on its pixels."""

import pytest
import torch

from gradellm_hf import GradELLM
from tests.support.pictures import COLOURS, square_on_grey
from tests.support.planted_pictures import SIZE, planted_chat, square, taught
from tests.support.tiny_processors import FAMILIES, without_mixing

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", FAMILIES)
def test_the_patch_that_decides_ranks_first_and_is_drawn_on_its_pixels(family):
    model, processor = taught(family)
    for number, colour in zip((0, 7, 9), COLOURS):
        place = left, top, right, bottom = square(number)
        picture = square_on_grey(SIZE, place, colour, seed=1000 + number)
        with without_mixing(model):
            explanation = GradELLM(model, processor).explain(planted_chat(picture), max_new_tokens=1, do_sample=False)
        expected = processor.tokenizer(f" {colour}", add_special_tokens=False)["input_ids"][0]
        assert explanation.token_ids[-1] == expected
        (image,) = explanation.images
        first = explanation.attributions[0].argmax().item()
        assert first in image.positions
        x, y, x_end, y_end = image.boxes[image.positions.index(first)].tolist()
        assert max(x, left) < min(x_end, right)
        assert max(y, top) < min(y_end, bottom)
        heatmap = explanation.image_heatmap()
        assert heatmap.shape == SIZE
        row, column = divmod(heatmap.argmax().item(), SIZE[1])
        assert top <= row < bottom
        assert left <= column < right
        inside = heatmap[top:bottom, left:right].sum()
        assert inside > 0.2 * heatmap.sum()  # a tile's patch is inside, one of the whole picture made small reaches beyond
        (part,) = explanation.sources("message", "answer")
        assert part.sources[0].name == "image 1"


def test_of_two_pictures_the_one_that_decides_is_named():
    """The second picture is all grey."""
    model, processor = taught("qwen2_vl")
    pictures = [square_on_grey(SIZE, square(5), "green", seed=3), square_on_grey(SIZE, (0, 0, 0, 0), "green", seed=4)]
    content = [{"type": "image", "image": pictures[0]}, {"type": "image"}, {"type": "text", "text": "Colour?"}]
    with without_mixing(model):
        explanation = GradELLM(model, processor).explain([{"role": "user", "content": content}], " green", images=pictures[1])
    scores = [explanation.image_heatmap(number, part=0).sum() for number in range(2)]
    assert scores[0] > 10 * scores[1]
    heatmap = explanation.image_heatmap(0)
    left, top, right, bottom = square(5)
    assert torch.equal(heatmap[top:bottom, left:right].amax(), heatmap.amax())
