"""`gradellm explain` and `show`: sources, levels, spans, foils, and chats as they are."""

import json
import re

import pytest

from gradellm_hf import Explanation, GradELLM, load_dataset_explanations
from gradellm_hf.cli import main
from tests.support.small_llama import small_llama
from tests.support.tiny_tokenizers import byte_level_bpe
from tests.text.test_segments import CHATML

PROMPT = "The cat is red. The dog is blue."
SHORT = ["--max-new-tokens", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    small_llama(vocab_size=len(byte_level_bpe())).save_pretrained(path)
    byte_level_bpe().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def explainer(folder):
    return GradELLM.from_pretrained(folder, device_map=None)


def printed(capsys, *arguments):
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out.rstrip("\n")


def written(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def test_sources_by_level_and_by_spans(folder, explainer, capsys, tmp_path):
    explanation = explainer.explain(PROMPT, max_new_tokens=3, do_sample=False)
    saved = tmp_path / "e.safetensors"
    call = ["explain", folder, "--prompt", PROMPT, *SHORT, "--sources"]
    assert printed(capsys, *call, "--save", str(saved)) == explanation.sources().render()
    assert printed(capsys, *call, "--level", "word", "--top", "2") == explanation.sources("word").render(2)
    spans = {"cat": "The cat is red.", "dog": [16, 32]}
    file = written(tmp_path / "spans.json", spans)
    by_span = explanation.sources({"cat": "The cat is red.", "dog": (16, 32)})
    assert printed(capsys, *call, "--spans", file) == by_span.render()
    assert printed(capsys, "show", str(saved), "--sources", "--spans", file) == by_span.render()
    assert json.loads(printed(capsys, "show", str(saved), "--sources", "--json"))["by"] == "sentence"


def test_small_files_are_written_by_explain_and_show(folder, explainer, capsys, tmp_path):
    explanation = explainer.explain(PROMPT, max_new_tokens=3, do_sample=False)
    saved, smaller = tmp_path / "e.safetensors", tmp_path / "smaller.safetensors"
    call = ["explain", folder, "--prompt", PROMPT, *SHORT, "--sources"]
    assert printed(capsys, *call, "--save", str(saved), "--keep", "top") == explanation.sources().render()
    assert Explanation.load(saved).attributions.equal(explanation.compact().attributions)
    assert printed(capsys, "show", str(saved), "--sources") == explanation.sources().render()
    printed(capsys, "show", str(saved), "--save", str(smaller), "--keep", "1", "--scores", "float16")
    assert Explanation.load(smaller).rest.sums.equal(explanation.compact().compact(1).rest.sums)
    save, is_neither = ["--save", str(smaller)], "is neither top nor a number of at least 1"
    for wrong, message in ((["top"], "give a file with --save"), (["0", *save], is_neither), (["most", *save], is_neither)):
        with pytest.raises(SystemExit):
            main(["show", str(saved), "--keep", *wrong])
        assert message in capsys.readouterr().err


def test_the_picture_of_sources_has_them_beside_the_words_of_the_answer(folder, explainer, capsys, tmp_path):
    explanation = explainer.explain(PROMPT, max_new_tokens=3, do_sample=False)
    picture, expected = tmp_path / "sources.svg", tmp_path / "expected.svg"
    call = ["explain", folder, "--prompt", PROMPT, *SHORT, "--png", str(picture)]
    printed(capsys, *call, "--sources")
    assert "source sentence" in _labels(picture)
    assert "word of the answer" in _labels(picture)
    printed(capsys, *call)
    explanation.plot(expected)
    assert _labels(picture) == _labels(expected)


def _labels(picture):
    """The texts of an SVG, which matplotlib writes as comments beside their outlines."""
    return re.findall(r"<!-- (.*?) -->", picture.read_text())


def test_what_is_lost_without_the_strongest_source_stands_beside_the_shares(folder, explainer, capsys, tmp_path):
    explanation = explainer.explain(PROMPT, max_new_tokens=3, do_sample=False)
    call = ["explain", folder, "--prompt", PROMPT, *SHORT, "--sources", "--removal-test"]
    removals = explainer.removal_test(explanation)
    assert printed(capsys, *call) == f"{explanation.sources().render()}\n\n{removals}"
    spans = {"cat": "The cat is red.", "dog": "The dog is blue."}
    by_span = json.loads(printed(capsys, *call, "--json", "--spans", written(tmp_path / "spans.json", spans)))
    assert by_span["parts"] == [removal["part"] for removal in by_span["removals"]]
    assert by_span["removals"] == explainer.removal_test(explanation, spans).to_dict()


def test_the_page_has_the_spans_and_what_was_measured(folder, explainer, capsys, tmp_path):
    spans = {"cat": "The cat is red.", "dog": "The dog is blue."}
    page, file = tmp_path / "page.html", written(tmp_path / "spans.json", spans)
    printed(capsys, "explain", folder, "--prompt", PROMPT, *SHORT, "--html", str(page), "--spans", file, "--removal-test")
    data = json.loads(page.read_text().split('"application/json">')[1].split("</script>")[0])
    removals = explainer.removal_test(explainer.explain(PROMPT, max_new_tokens=3, do_sample=False), spans)
    assert [span["name"] for span in data["spans"]] == ["cat", "dog"]
    assert [held["loss"] for held in data["removals"]] == pytest.approx([removal.loss for removal in removals], abs=1e-4)


def test_levels_and_spans_of_what_is_printed(folder, explainer, capsys, tmp_path):
    explanation = explainer.explain(PROMPT, max_new_tokens=3, do_sample=False)
    call = ["explain", folder, "--prompt", PROMPT, *SHORT]
    assert printed(capsys, *call, "--level", "sentence") == explanation.aggregate("sentence").render()
    assert json.loads(printed(capsys, *call, "--level", "word", "--json"))["level"] == "word"
    spans = written(tmp_path / "spans.json", {"dog": "The dog is blue."})
    assert printed(capsys, *call, "--spans", spans) == explanation.aggregate({"dog": "The dog is blue."}).render()


def test_a_foil(folder, explainer, capsys):
    expected = explainer.explain(PROMPT, " qz7", foil=" qx7")
    assert printed(capsys, "explain", folder, "--prompt", PROMPT, "--target", " qz7", "--foil", " qx7") == expected.render()


def test_options_of_the_chat_template(folder, capsys, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text(CHATML)
    tools = written(tmp_path / "tools.json", [{"type": "function", "function": {"name": "weather", "description": "Rain?"}}])
    documents = written(tmp_path / "documents.json", [{"title": "Map", "text": "Oslo is north."}])
    saved = tmp_path / "e.safetensors"
    files = ["--chat-template", str(template), "--tools", tools, "--documents", documents, "--save", str(saved)]
    printed(capsys, "explain", folder, "--chat", "--prompt", "Who?", *SHORT, *files, "--enable-thinking")
    explanation = Explanation.load(saved)
    assert [segment["name"] for segment in explanation.segments] == ["tool: weather", "document: Map", "1. user"]
    assert "".join(explanation.tokens[: explanation.prompt_length]).endswith("<think>\n")


def test_the_chats_of_a_dataset_have_the_same_options(folder, capsys, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text(CHATML)
    tools = written(tmp_path / "tools.json", [{"type": "function", "function": {"name": "weather", "description": "Rain?"}}])
    prompts = written(tmp_path / "prompts.jsonl", {"messages": [{"role": "user", "content": "Who?"}]})
    call = ["dataset", folder, "--prompts", prompts, "--output", str(tmp_path / "job"), *SHORT]
    options = ["--chat-template", str(template), "--tools", tools]
    printed(capsys, *call, *options)
    (explanation,) = load_dataset_explanations(tmp_path / "job")
    assert [segment["name"] for segment in explanation.segments] == ["tool: weather", "1. user"]
    shown = ["show", str(tmp_path / "job"), "--row", "0", "--sources", "--level", "message"]
    assert printed(capsys, *shown) == explanation.sources("message").render()
    with pytest.raises(SystemExit):
        main([*call, *options, "--generate", '{"tools": []}'])
    assert "--tools and --generate both say `tools`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tools", "tools.json"], "is for the template of a chat"),
        (["--chat", "--tools", "missing.json"], "no JSON list can be read"),
        (["--chat", "--chat-template", "missing.jinja"], "cannot be read"),
        (["--spans", "missing.json"], "no JSON object can be read"),
        (["--spans", "list.json"], "a JSON object with something in it is expected"),
        (["--spans", "spans.json", "--level", "word"], "give one of them"),
        (["--removal-test"], "--removal-test needs --sources or --html"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model_is_loaded(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "list.json", [1])
    written(tmp_path / "spans.json", {"a": "cat"})
    with pytest.raises(SystemExit) as exit_:
        main(["explain", "no-model", "--prompt", PROMPT, *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
