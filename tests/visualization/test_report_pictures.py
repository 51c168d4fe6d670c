"""Pictures of a prompt on the page, with what the answer rests on in them."""

import base64
import dataclasses
import io
import json
import re

import pytest
import torch
from PIL import Image

from gradellm_hf import InvalidInputError
from gradellm_hf.images import ImagePatches
from gradellm_hf.visualization import plot_picture, report, snippet
from tests.support.explained import explanation_of
from tests.support.pictures import square_on_grey

TOKENS = ["<s>", "Look", "<i>", "<i>", "<b>", "<i>", "<i>", "<i>", " Which", " colour", "?", " red", " and", " blue"]
#: Four patches in two rows, with a mark between, and a small version of the whole picture.
BOXES = [[0, 0, 400, 300], [400, 0, 800, 300], [0, 300, 400, 600], [400, 300, 800, 600], [0, 0, 800, 600]]
POSITIONS = [2, 3, 5, 6, 7]


def seen(**more):
    """The first word rests on patch 1, the last on patch 2 and, ten times as much, on "Look"."""
    special = [token in ("<s>", "<b>") for token in TOKENS]
    explanation = explanation_of(TOKENS, 11, special=special)
    scores = torch.zeros(3, len(TOKENS))
    scores[0, 3], scores[0, 7], scores[0, 1] = 1.0, 0.4, 0.5
    scores[1, 1] = 1.0
    scores[2, 5], scores[2, 1] = 0.1, 1.0
    image = ImagePatches(POSITIONS, (600, 800), torch.tensor(BOXES), square_on_grey((600, 800), (400, 0, 800, 300), "red"))
    return dataclasses.replace(explanation, attributions=scores, images=[dataclasses.replace(image, **more)])


def data_of(page):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])


def test_the_page_has_a_small_picture_and_its_parts_in_per_cent():
    (image,) = data_of(report(seen()))["images"]
    assert image["boxes"][3] == [50, 50, 50, 50]
    assert (image["first"], image["last"], image["positions"]) == (2, 8, POSITIONS)
    kind, content = image["picture"].split(",")
    assert kind == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert picture.size == (768, 576)
    assert data_of(report(seen(picture=None)))["images"][0]["picture"] is None
    assert len(snippet(seen())) > len(snippet(seen(picture=None)))


def test_a_picture_of_another_size_is_not_drawn_under_a_heatmap():
    with pytest.raises(InvalidInputError, match="600 x 800 pixels and the heatmap 20 x 20"):
        plot_picture(torch.zeros(20, 20), seen().images[0].picture)


def patches(page):
    """The opacity of each patch's colour, by its token."""
    script = """patches => patches.map(patch => [patch.style.left, patch.style.top, patch.style.width,
        patch.style.backgroundColor])"""
    found = page.locator("gradellm-report .patch").evaluate_all(script)
    return {tuple(place): float(colour.rpartition("/")[2].strip(" )")) if "/" in colour else 0.0 for *place, colour in found}


WHOLE, FIRST, THIRD = ("0%", "0%", "100%"), ("50%", "0%", "50%"), ("0%", "50%", "50%")


@pytest.mark.browser
def test_the_patches_that_the_answer_rests_on_are_coloured_on_the_picture(open_page):
    page = open_page(report(seen()))
    strength = patches(page)
    assert len(strength) == 5
    assert strength[FIRST] == pytest.approx(0.65)
    assert strength[WHOLE] == pytest.approx(0.65 * 0.4 / 4, abs=0.01)  # by its size
    assert strength[THIRD] == 0  # below a fifth of the largest
    page.locator(".answer [data-unit]", has_text="blue").hover()
    strength = patches(page)
    assert strength[THIRD] == pytest.approx(0.65)  # although a word counts ten times as much
    assert strength[FIRST] == 0
    assert page.locator(".frame img").evaluate("img => [img.complete, img.naturalWidth]") == [True, 768]


@pytest.mark.browser
def test_a_picture_is_a_unit_by_words_and_each_patch_one_by_tokens(open_page):
    page = open_page(report(seen()))
    assert page.locator(".ranking li:not([hidden]) b", has_text="image 1").count() == 1
    page.locator(".picture").click(position={"x": 3, "y": 3})
    assert page.locator(".question").inner_text() == "\u201cimage 1\u201d fed"
    page.keyboard.press("Escape")
    page.locator(".levels label", has_text="Tokens").click()
    assert "image 1, patch 2" in page.locator(".ranking").inner_text()
    page.locator(".patch").nth(2).click()
    assert page.locator(".question").inner_text() == "\u201cimage 1, patch 2\u201d fed"
    assert page.locator(".answer [data-shade='8']").inner_text() == " red"
    assert set(patches(page).values()) == {0.0}


@pytest.mark.browser
def test_a_picture_without_known_parts_is_shown(open_page):
    page = open_page(report(seen(boxes=None).aggregate("word")))
    assert page.locator(".picture").is_visible()
    assert page.locator(".patch").count() == 0
    page.locator(".ranking button", has_text="image 1").click()
