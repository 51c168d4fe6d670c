"""The explained pipeline for pictures and text answers as Transformers' own does, and explains each answer."""

from typing import Any

import pytest
import torch
import transformers
from transformers import ImageTextToTextPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from gradellm_hf import GradELLM, InvalidInputError
from gradellm_hf.pipeline import IMAGE_TASK, TASK, ExplainedImageTextToTextPipeline, register_pipeline
from tests.support.pictures import square_on_grey
from tests.support.tiny_processors import model_of, processor_of

PICTURES = [square_on_grey((30, 44), (4, 4, 20, 20), "red"), square_on_grey((50, 24), (4, 4, 20, 20), "blue")]


def chat(*pictures: Any, text: str = "Which colour?") -> list[dict[str, Any]]:
    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def pipelines(family: str) -> tuple[Any, Any]:
    options = {"model": model_of(family), "processor": processor_of(family), "max_new_tokens": 3}
    return ImageTextToTextPipeline(**options), ExplainedImageTextToTextPipeline(**options)


def answers(results: Any) -> tuple[Any, list[Any]]:
    """Results without their explanations, and the explanations in order."""
    if isinstance(results, dict):
        return {name: value for name, value in results.items() if name != "explanation"}, [results["explanation"]]
    parts = [answers(result) for result in results]
    return [plain for plain, _ in parts], [explanation for _, found in parts for explanation in found]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3"])
@pytest.mark.parametrize(
    ("arguments", "options", "images"),
    [
        ({"text": chat(*PICTURES)}, {}, [2]),
        ({"text": [chat(PICTURES[0]), chat(PICTURES[1])]}, {}, [1, 1]),
        ({"text": chat(PICTURES[0])}, {"generate_kwargs": {"num_return_sequences": 2, "do_sample": True}}, [1, 1]),
        ({"text": chat(text="Say red.")}, {}, [0]),
        ({"images": PICTURES[0], "text": "PLACE Which colour?"}, {"return_full_text": False}, [1]),
        ({"images": PICTURES, "text": "PLACE and PLACE?"}, {}, [2]),
    ],
)
def test_the_answers_are_those_of_transformers_and_each_explanation_knows_its_images(family, arguments, options, images):
    plain, explained = pipelines(family)
    if isinstance(arguments["text"], str):
        arguments = {**arguments, "text": arguments["text"].replace("PLACE", processor_of(family).image_token)}
    torch.manual_seed(3)
    expected = plain(**arguments, **options)
    torch.manual_seed(3)
    actual, explanations = answers(explained(**arguments, **options))
    assert actual == expected
    assert [len(explanation.images or []) for explanation in explanations] == images[: len(explanations)]
    for explanation in explanations:
        assert explanation.segments is None or "Say red." in explanation.prompt or "Which colour?" in explanation.prompt
        for number, image in enumerate(explanation.images or []):
            score = explanation.attributions[:, image.positions].sum().item()
            assert explanation.image_heatmap(number).sum().item() == pytest.approx(score, rel=1e-4)


def test_the_pipeline_explains_as_explain_does():
    explanation = pipelines("qwen2_vl")[1](text=chat(*PICTURES))[0]["explanation"]
    expected = GradELLM(model_of("qwen2_vl"), processor_of("qwen2_vl")).explain(chat(*PICTURES), max_new_tokens=3)
    assert explanation.text == expected.text
    assert explanation.segments == expected.segments
    torch.testing.assert_close(explanation.attributions, expected.attributions)
    for actual, image in zip(explanation.images, expected.images, strict=True):
        assert (actual.positions, actual.size) == (image.positions, image.size)
        assert torch.equal(actual.boxes, image.boxes)


def test_chats_in_one_batch_keep_their_own_pictures():
    _, explained = pipelines("llava")
    results = explained(text=[chat(PICTURES[0]), chat(PICTURES[1], text="Which colour is it?")], batch_size=2)
    for (result,), picture in zip(results, PICTURES, strict=True):
        (image,) = result["explanation"].images
        assert image.size == (picture.height, picture.width)
        alone = explained(text=result["input_text"])[0]["explanation"]
        torch.testing.assert_close(result["explanation"].attributions, alone.attributions, rtol=1e-3, atol=1e-6)


def test_the_task_is_known_by_name_and_steps_choose_what_is_explained():
    model, processor = model_of("llava"), processor_of("llava")
    try:
        register_pipeline()
        explained = transformers.pipeline(IMAGE_TASK, model=model, processor=processor, max_new_tokens=3)
    finally:
        for task in (TASK, IMAGE_TASK):
            PIPELINE_REGISTRY.supported_tasks.pop(task, None)
    assert isinstance(explained, ExplainedImageTextToTextPipeline)
    assert explained(text=chat(PICTURES[0]), steps=[-1])[0]["explanation"].explained == [False, False, True]


def test_a_video_is_refused():
    with pytest.raises(InvalidInputError, match="Message 0 of the chat holds a video"):
        pipelines("llava")[1](text=[{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}])
