"""Chats hold text. Whatever else is in one is refused by everything that takes chats, and nothing is left out silently."""

import copy
import json
from typing import Any

import pytest
import torch

from gradellm_hf import ExplainedTextGenerationPipeline, GradELLM, InvalidInputError, explain_dataset
from gradellm_hf.cli import main
from gradellm_hf.evaluation import evaluate
from gradellm_hf.text.chats import check_chat
from tests.support.evaluated import model_and_tokenizer
from tests.support.tiny_multimodal import IMAGE, tiny_multimodal

PART = {"type": "text", "text": "What is it?"}
NOT_TEXT: dict[str, tuple[dict[str, Any], str]] = {
    "image": ({"type": "image"}, "an image"),
    "image, url": ({"type": "image", "url": "https://x/y.png"}, "an image"),
    "image, path": ({"type": "image", "path": "y.png"}, "an image"),
    "image, base64": ({"type": "image", "base64": "AAAA"}, "an image"),
    "image by name": ({"image": "y.png"}, "an image"),
    "image_url": ({"type": "image_url", "image_url": {"url": "https://x/y.png"}}, "an image"),
    "image_url by name": ({"image_url": "https://x/y.png"}, "an image"),
    "input_image": ({"type": "input_image", "file_id": "7"}, "an image"),
    "image beside text": ({"type": "text", "text": "Look", "image": "y.png"}, "an image"),
    "video": ({"type": "video", "video": "y.mp4"}, "a video"),
    "video_url": ({"type": "video_url", "video_url": {"url": "https://x/y.mp4"}}, "a video"),
    "audio": ({"type": "audio", "path": "y.wav"}, "an audio"),
    "input_audio": ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "an audio"),
    "document": ({"type": "document", "text": "Rome"}, "a part that is not text"),
    "no text": ({"type": "text"}, "a part that is not text"),
    "number": ({"type": "text", "text": 7}, "a part that is not text"),
    "text without a dict": ("What is it?", "a part that is no dict"),  # type: ignore[dict-item]
    "tensor": (torch.zeros(3, 4, 4), "a part that is no dict"),  # type: ignore[dict-item]
}


@pytest.fixture(scope="module")
def explainer():
    return GradELLM(*model_and_tokenizer())


def chat(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content, **more}]


@pytest.mark.parametrize("name", NOT_TEXT)
def test_a_part_that_is_not_text_is_refused_by_every_entrance(explainer, name, tmp_path):
    part, message = NOT_TEXT[name]
    wrong = chat([PART, part])
    pipeline = ExplainedTextGenerationPipeline(model=explainer.model, tokenizer=explainer.tokenizer, max_new_tokens=1)
    calls = [
        lambda: explainer.explain(wrong, max_new_tokens=1),
        lambda: explainer.explain(wrong, "Rome"),
        lambda: explainer.explain(["Rome", wrong], max_new_tokens=1),
        lambda: pipeline(wrong),
        lambda: pipeline([wrong, chat("Rome")], batch_size=2),
        lambda: explain_dataset(explainer, [wrong], tmp_path / "job", max_new_tokens=1),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError, match=f"Message 1 of the chat (holds|has) {message}"):
            call()
    done = evaluate(explainer, [{"messages": wrong}], tmp_path / "evaluation", methods=["random"], metrics=["deletion"])
    assert f"{message}" in done.errors[0]


def test_a_prompt_with_an_image_takes_no_other_down(explainer, tmp_path):
    done = explain_dataset(explainer, ["Rome", chat([PART, {"type": "image"}])], tmp_path / "job", max_new_tokens=1)
    assert done[0].text.startswith("Rome")
    assert list(done.errors) == [1]
    assert "Message 1 of the chat holds an image" in done.errors[1]


def test_the_command_line_refuses_it_before_it_loads_a_model(tmp_path, capsys):
    file = tmp_path / "chat.json"
    for content, message in (
        (chat([PART, {"type": "image"}]), "Message 1 of the chat holds an image"),
        (["Rome", "Paris"], "A chat is a list of messages"),
        ({"role": "user", "content": "Rome"}, "A chat is a list of messages"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(SystemExit) as exit_:
            main(["explain", str(tmp_path / "no-model"), "--chat", "--prompt-file", str(file)])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "A chat is a list of messages with at least one in it"),
        ("Rome", "A chat is a list of messages"),
        (b"Rome", "A chat is a list of messages"),
        ([["Rome"]], "A chat is a list of messages"),
        ({"role": "user", "content": "Rome"}, "A chat is a list of messages"),
        ([{"content": "Rome"}], "Message 0 of the chat has no `role`"),
        ([{"role": 3, "content": "Rome"}], "has no `role`"),
        ([{"role": "user"}], "has no `content`"),
        ([{"role": "user", "content": None}], "has no `content`"),
        ([{"role": "user", "content": 7}], "has a `content` of int"),
        ([{"role": "user", "content": b"Rome"}], "has a `content` of bytes"),
        ([{"role": "user", "content": {"type": "text", "text": "Rome"}}], "has a `content` of dict"),
        ([{"role": "user", "content": {"type": "image"}}], "holds an image"),
        ([{"role": "user", "content": torch.zeros(3, 4, 4)}], "has a `content` of Tensor"),
        ([{"role": "user", "content": "Look", "images": ["y.png"]}], "holds an image"),
        ([{"role": "user", "content": "Listen", "audio": "y.wav"}], "holds an audio"),
        ([{"type": "image"}, {"type": "text", "text": "What is it?"}], "Message 0 of the chat holds an image"),
    ],
    ids=repr,
)
def test_messages_and_contents_of_the_wrong_kind(wrong, message):
    with pytest.raises(InvalidInputError, match=message):
        check_chat(wrong)


def test_text_in_parts_calls_of_tools_and_further_fields_are_text(explainer):
    for right in (
        chat("Rome"),
        chat(""),
        tuple(chat([PART, {"text": "Now."}])),
        chat([{**PART, "image": None}]),  # as tables write a field that another row has
        chat("Rome", name="Anna", images=None),
        [*chat("Rome"), {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}],
        [*chat("Rome"), {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}],
    ):
        check_chat(right)
    assert "Rome" in explainer.explain(chat("Rome"), max_new_tokens=1).text


@pytest.mark.parametrize("options", [{"max_new_tokens": 1}, {"target": " Rome"}, {"target": " <image>"}], ids=str)
def test_a_placeholder_without_an_image_is_not_explained_as_text(options):
    model = tiny_multimodal("idefics3")
    tokenizer = copy.deepcopy(model_and_tokenizer()[1])

    class Reads(type(tokenizer)):  # type: ignore[misc]
        """Gives the image's token for `<image>`."""

        def __call__(self, text: str, **kwargs: Any) -> Any:
            return {"input_ids": [IMAGE if piece == "<image>" else 7 for piece in text.split()]}

    tokenizer.__class__ = Reads
    explainer = GradELLM(model, tokenizer)
    prompt = "Rome" if options.get("target") == " <image>" else "Look at <image> please"
    with pytest.raises(InvalidInputError, match="placeholders of images, videos or sounds, and there is nothing"):
        explainer.explain(prompt, **options)
