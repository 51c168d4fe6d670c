"""`GradELLM` with a processor: prompts with pictures, from chats and texts to heatmaps."""

import dataclasses
import io
from typing import Any

import numpy
import pytest
import torch

from gradellm_hf import Explanation, GradELLM, InvalidInputError, explain_generate
from tests.support.pictures import square_on_grey
from tests.support.tiny_processors import FAMILIES, model_of, processor_of

PICTURES = [square_on_grey((30, 44), (4, 4, 20, 20), "red"), square_on_grey((50, 24), (4, 4, 20, 20), "blue")]


def chat(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    content = [first, {"type": "text", "text": "Which colour is it? "}, second, {"type": "text", "text": "a"}]
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]


CHAT = chat({"type": "image", "image": PICTURES[0]}, {"type": "image"})


def explainer(family: str = "qwen2_vl") -> GradELLM:
    return GradELLM(model_of(family), processor_of(family))


def explained(family: str = "qwen2_vl", **options: Any) -> Explanation:
    return explainer(family).explain(CHAT, images=PICTURES[1], **{"max_new_tokens": 3, "do_sample": False, **options})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_with_two_pictures_is_read_as_its_processor_does_and_its_parts_are_known(family):
    explanation = explained(family)
    whole = chat({"type": "image", "image": PICTURES[0]}, {"type": "image", "image": PICTURES[1]})
    read = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, whole[1]]  # as early versions want it
    inputs = processor_of(family).apply_chat_template(
        read, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    out = explain_generate(model_of(family), **inputs, max_new_tokens=3, do_sample=False)
    assert explanation.token_ids == out.sequences[0].tolist()
    torch.testing.assert_close(explanation.attributions, out.attributions[0])
    assert [i for image in explanation.images for i in image.positions] == out.image_mask[0].nonzero().flatten().tolist()
    assert [image.size for image in explanation.images] == [(30, 44), (50, 24)]
    texts = [(part["name"], explanation.text[part["start"] : part["end"]]) for part in explanation.segments]
    assert texts == [("1. system", "Be brief."), ("2. user", "Which colour is it?"), ("2. user", "a")]
    assert explanation.prompt == "Be brief.\n\nWhich colour is it?\n\na"
    (again,) = out.explanations(processor_of(family), chats=[whole])
    assert again.segments == explanation.segments
    assert torch.equal(again.image_heatmap(1), explanation.image_heatmap(1))


@pytest.mark.parametrize("family", ["mistral3", "idefics3"])
def test_an_image_is_one_source_whatever_the_units(family):
    explanation = explained(family)
    first, second = explanation.images
    for level in ("word", "sentence", "message"):
        units = explanation.units(level)
        assert {(image.extent.start, image.extent.stop) for image in (first, second)} <= set(units)
        names = [source.name for part in explanation.sources(level, "answer") for source in part.sources]
        assert {"image 1", "image 2"} <= set(names)
    assert len(explanation.units("token")) > len(first.positions) + len(second.positions)
    by_word = explanation.aggregate("word")
    positions = [image.positions for image in by_word.images]
    assert [by_word.unit_names[position] for (position,) in positions] == ["image 1", "image 2"]
    scores = explanation.attributions.sum(0)
    for image, (position,) in zip(explanation.images, positions):
        assert by_word.attributions[:, position].sum() == pytest.approx(scores[list(image.extent)].sum().item(), rel=1e-4)
    with pytest.raises(InvalidInputError, match="made into larger units"):
        by_word.image_heatmap()


def test_markers_inside_an_image_are_no_sources():
    explanation = explained("mistral3")
    image = explanation.images[0]
    breaks = sorted(set(image.extent) - set(image.positions))
    assert breaks
    assert all(explanation.special[i] for i in breaks)
    assert not any(explanation.special[i] for i in image.positions)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "mistral3", "internvl"])
def test_a_given_text_is_explained_as_if_it_were_written(family):
    written = explained(family)
    text = written.text[sum(map(len, written.tokens[: written.prompt_length])) :]
    given = explainer(family).explain(CHAT, images=PICTURES[1], target=text)
    if given.token_ids == written.token_ids:  # bytes that are no text cannot be given as one
        torch.testing.assert_close(given.attributions, written.attributions)
    red = explainer(family).explain(CHAT, images=PICTURES[1], target=" red</s>, really")
    assert red.answer == "red, really"
    assert (red.attributions.sum(-1) > 0).all()


def test_a_contrast_has_a_heatmap_of_both_signs():
    explanation = explainer().explain(CHAT, " red", images=PICTURES[1], foil=" blue")
    assert explanation.foil is not None
    heatmap = torch.cat([explanation.image_heatmap(number).flatten() for number in range(2)])
    assert heatmap.min() < 0 < heatmap.max()
    written = explainer().explain(CHAT, images=PICTURES[1], foil=" blue", max_new_tokens=2, do_sample=False)
    assert len(written.attributions) == 1


def test_a_heatmap_of_a_part_of_the_answer():
    explanation = explainer().explain(CHAT, " red, really", images=PICTURES[1])
    steps = [explanation.image_heatmap(part=step) for step in range(len(explanation.attributions))]
    torch.testing.assert_close(explanation.image_heatmap(), sum(steps))
    torch.testing.assert_close(explanation.image_heatmap(part=-1), steps[-1])
    (answer,) = explanation.sources(of="answer")
    torch.testing.assert_close(explanation.image_heatmap(part=answer), explanation.image_heatmap(part="red, really"))
    torch.testing.assert_close(explanation.image_heatmap(part=(answer.start, answer.end)), explanation.image_heatmap())
    assert torch.equal(explanation.image_heatmap(-1), explanation.image_heatmap(1))
    for part, message in ((99, "There is no step 99"), ("purple", "is 0 times in the answer"), ((0, 3), "`part` must be")):
        with pytest.raises(InvalidInputError, match=message):
            explanation.image_heatmap(part=part)
    with pytest.raises(InvalidInputError, match="There is no image 2: the prompt has 2"):
        explanation.image_heatmap(2)
    some = explained(steps=[1])
    with pytest.raises(InvalidInputError, match="is explained"):
        some.image_heatmap(part=0)


def test_texts_with_placeholders_and_lists_of_prompts():
    place = processor_of("llava").image_token
    first, second, third = explainer("llava").explain(
        [f"{place} Which?", "Say red.", f"{place}{place} And?"],
        images=[PICTURES[0], None, PICTURES],
        max_new_tokens=2,
        do_sample=False,
    )
    assert [len(each.images or []) for each in (first, second, third)] == [1, 0, 2]
    assert first.segments is None
    assert [source.name for source in first.sources("sentence", "answer")[0].sources].count("image 1") == 1
    steps = list(explainer("llava").stream(f"{place} Which?", images=PICTURES[0], max_new_tokens=2, do_sample=False))
    torch.testing.assert_close(steps[1].attributions[0], first.attributions[1, : first.prompt_length + 1])


def test_pictures_are_taken_in_every_form(tmp_path):
    path = tmp_path / "picture.png"
    PICTURES[1].save(path)
    expected = explained()
    for picture in (str(path), numpy.asarray(PICTURES[1])):
        actual = explainer().explain(CHAT, images=[picture], max_new_tokens=3, do_sample=False)
        assert torch.equal(actual.attributions, expected.attributions)
    parts = chat({"type": "image_url", "image_url": {"url": str(path)}}, {"type": "image", "path": str(path)})
    assert [image.size for image in explainer().explain(parts, max_new_tokens=1).images] == [(50, 24)] * 2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "an image without a picture"),
        ([PICTURES[1]] * 2, "`images` holds 2 pictures, but only 1 images of the chat have none"),
        (["nowhere.png"], "A picture cannot be loaded"),
    ],
)
def test_wrong_pictures_are_refused(images, message):
    with pytest.raises(InvalidInputError, match=message):
        explainer().explain(CHAT, images=images)


def test_what_cannot_be_read_is_refused():
    only_text = GradELLM(model_of("llava"), processor_of("llava").tokenizer)
    with pytest.raises(InvalidInputError, match="there is a tokenizer"):
        only_text.explain("<image> Which?", images=PICTURES[0])
    with pytest.raises(InvalidInputError, match="cannot read the prompt with 1 picture"):
        explainer("llava").explain("Which?", images=PICTURES[0])
    with pytest.raises(InvalidInputError, match="`images` must hold the pictures of each of the 2 prompts"):
        explainer("llava").explain(["<image> a", "<image> b"], images=[PICTURES[0]])
    with pytest.raises(InvalidInputError, match="would read it without them"):
        explainer().removal_test(explained(), "word")
    with pytest.raises(InvalidInputError, match="knows no images"):
        explainer("llava").explain("Say red.", max_new_tokens=1).image_heatmap()


def test_a_processor_of_an_unknown_family_is_explained_without_a_heatmap(monkeypatch):
    monkeypatch.setattr("gradellm_hf.images.layouts.LAYOUTS", {})
    explanation = explained("qwen2_vl")
    assert [image.boxes for image in explanation.images] == [None, None]
    assert {"image 1", "image 2"} <= {source.name for source in explanation.sources("message", "answer")[0].sources}
    with pytest.raises(InvalidInputError, match="of a family whose layout"):
        explanation.image_heatmap()


def test_a_file_keeps_where_tokens_lie_and_pictures_if_asked(tmp_path):
    explanation = explained("idefics3")
    explanation.save(tmp_path / "without")
    explanation.save(tmp_path / "with", pictures=True)
    for name in ("without", "with"):
        loaded = Explanation.load(tmp_path / name)
        assert [image.positions for image in loaded.images] == [image.positions for image in explanation.images]
        assert torch.equal(loaded.image_heatmap(1), explanation.image_heatmap(1))
        assert loaded.sources("message") == explanation.sources("message")
    assert [image.picture for image in Explanation.load(tmp_path / "without").images] == [None, None]
    for loaded, image in zip(Explanation.load(tmp_path / "with").images, explanation.images):
        assert numpy.array_equal(numpy.asarray(loaded.picture), numpy.asarray(image.picture))
    explanation.aggregate("word").save(tmp_path / "words")
    assert [image.boxes for image in Explanation.load(tmp_path / "words").images] == [None, None]
    assert (tmp_path / "without").stat().st_size < (tmp_path / "with").stat().st_size


def test_images_that_do_not_fit_the_explanation_are_refused():
    explanation = explained()
    (image, _) = explanation.images
    for changed, message in (
        (dataclasses.replace(image, positions=[3, 2]), "must be positions of the prompt"),
        (dataclasses.replace(image, positions=[10**6]), "must be positions of the prompt"),
        (dataclasses.replace(image, boxes=image.boxes[1:]), "`boxes` must have shape"),
        (dataclasses.replace(image, boxes=image.boxes + 40), "must lie in a picture of 30 x 44 pixels"),
        (dataclasses.replace(image, size=(0, 4)), "must be from 1 to"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            dataclasses.replace(explanation, images=[changed])


def test_a_figure_shows_the_picture_with_its_heatmap(tmp_path):
    explanation = explained()
    explanation.plot_image(tmp_path / "seen.png", 1, part=0, title="Which colour?")
    assert (tmp_path / "seen.png").stat().st_size > 5000
    alone = dataclasses.replace(explanation, images=[dataclasses.replace(explanation.images[0], picture=None)])
    content = io.BytesIO()
    alone.plot_image().savefig(content)
    assert content.getvalue()


def test_json_says_where_the_images_are():
    described = explained().to_dict()["images"]
    assert [(image["height"], image["width"]) for image in described] == [(30, 44), (50, 24)]
    assert len(described[0]["positions"]) == len(described[0]["boxes"])
