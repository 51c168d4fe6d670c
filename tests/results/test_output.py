"""What an explained generation returns, and its file."""

import json
import struct
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gradellm_hf import ExplainGenerateOutput, GradELLMConfig, InvalidInputError, explain_generate, explain_sequences
from gradellm_hf.checks.files import write_tensors
from tests.support.small_llama import generate_both, padded_prompts, random_ids, small_llama
from tests.support.versions import CACHE

TENSORS = (
    "sequences",
    "attributions",
    "step_mask",
    "target_scores",
    "token_probabilities",
    "prompt_mask",
    "layer_attributions",
)


class Letters:
    """A tokenizer with one name a token; some names need escaping in JSON."""

    def convert_ids_to_tokens(self, ids):
        return [f'"\\é\n<{i}>' for i in ids]


@pytest.fixture(scope="module")
def llama():
    model = small_llama()
    model.config.name_or_path = "our/llama"
    return model


@pytest.fixture
def output(llama):
    config = GradELLMConfig(layers=[1, -1], target="probability", output_layer_attributions=True)
    return explain_generate(llama, **padded_prompts(), max_new_tokens=4, explain_config=config)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_k": 9}], ids=str)
def test_everything_that_generate_returns_is_there_under_its_name(options):
    model = small_llama(attention="eager")
    asked = dict.fromkeys(
        ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"), True
    )
    expected, out = generate_both(model, **padded_prompts(), max_new_tokens=5, **asked, **options)
    for name in ("sequences", "scores", "logits", "attentions", "hidden_states", "sequences_scores", "beam_indices"):
        torch.testing.assert_close(out.get(name), expected.get(name), rtol=0, atol=0)
    assert out.get("scores") is not None
    assert (out.get("beam_indices") is not None) == ("num_beams" in options)
    assert type(out.cache) is type(expected[CACHE])


def test_what_was_not_asked_for_is_not_there(llama):
    out = explain_generate(llama, **padded_prompts(), max_new_tokens=4)
    for name in (
        "scores",
        "logits",
        "attentions",
        "hidden_states",
        "cache",
        "sequences_scores",
        "layer_attributions",
    ):
        assert out[name] is None if name in out else getattr(out, name) is None


def test_raw_logits_are_the_target_scores(llama):
    out = explain_generate(
        llama, **padded_prompts(), max_new_tokens=5, do_sample=True, top_k=3, return_dict_in_generate=True, output_logits=True
    )
    logits = torch.stack(out.logits, dim=1)
    chosen = out.sequences[:, 9:, None]
    torch.testing.assert_close(out.target_scores, logits.gather(-1, chosen)[..., 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.token_probabilities, logits.softmax(-1).gather(-1, chosen)[..., 0], rtol=1e-3, atol=1e-6)


def test_heatmaps_of_the_layers_add_up_to_the_heatmap(output):
    assert output.layers == [1, 4]
    assert output.layer_attributions.shape == (3, 2, 4, 13)
    torch.testing.assert_close(output.layer_attributions.sum(1), output.attributions)


def test_a_file_holds_everything_bit_by_bit(output, tmp_path):
    output.save(tmp_path / "out.safetensors", Letters())
    loaded = ExplainGenerateOutput.load(tmp_path / "out.safetensors")
    for name in TENSORS:
        assert loaded[name].dtype == output[name].dtype
        assert torch.equal(loaded[name], output[name])
    assert loaded.tokens == [Letters().convert_ids_to_tokens(row) for row in output.sequences.tolist()]
    assert (loaded.prompt_length, loaded.layers, loaded.model_name) == (9, [1, 4], "our/llama")
    assert loaded.explain_config == output.explain_config
    assert loaded.keys() - output.keys() == {"tokens"}


def test_a_loaded_file_can_be_saved_again_unchanged(output, tmp_path):
    output.save(tmp_path / "first.safetensors", Letters())
    ExplainGenerateOutput.load(tmp_path / "first.safetensors").save(str(tmp_path / "second.safetensors"))
    first, second = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("first", "second"))
    assert header(first) == header(second)
    assert len(first) == len(second)


def header(content: bytes) -> dict:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def test_the_file_is_safetensors_with_json_in_its_header(output, tmp_path):
    output.save(tmp_path / "out.safetensors", Letters())
    metadata = header((tmp_path / "out.safetensors").read_bytes())["__metadata__"]
    values = {name: json.loads(value) for name, value in metadata.items()}
    assert values["format_version"] == 1
    assert values["format"] == "gradellm_hf"
    assert values["config"]["target"] == "probability"
    assert values["config"]["layers"] == [1, -1]
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


def test_what_generate_returned_besides_is_not_written(llama, tmp_path):
    out = explain_generate(llama, random_ids(1, 5), max_new_tokens=3, return_dict_in_generate=True, output_scores=True)
    out.save(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert set(file.keys()) == set(TENSORS) - {"layer_attributions"}


def test_no_generated_token_makes_a_file_too(llama, tmp_path):
    out = explain_sequences(llama, random_ids(2, 5), 5)
    out.save(tmp_path / "out.safetensors")
    assert ExplainGenerateOutput.load(tmp_path / "out.safetensors").attributions.shape == (2, 0, 5)


@pytest.mark.parametrize("foils", [7, [[7, 8, 9]], torch.tensor([[7, 8, 9]])], ids=["one", "list", "tensor"])
def test_foils_are_kept_in_the_file(llama, tmp_path, foils):
    config = GradELLMConfig(target="contrast", contrast_token_ids=foils)
    out = explain_sequences(llama, random_ids(2, 8), 5, explain_config=config)
    out.save(tmp_path / "out.safetensors")
    loaded = ExplainGenerateOutput.load(tmp_path / "out.safetensors").explain_config
    assert loaded.target == "contrast"
    assert torch.equal(torch.as_tensor(loaded.contrast_token_ids), torch.as_tensor(foils))


def first_logit(logits, token_ids):
    return logits[..., 0]


def test_a_callable_target_is_named_in_the_file_but_not_loaded(llama, tmp_path):
    out = explain_sequences(llama, random_ids(2, 8), 5, explain_config=GradELLMConfig(target=first_logit))
    out.save(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["target"] == "callable:first_logit"
    loaded = ExplainGenerateOutput.load(tmp_path / "out.safetensors")
    assert loaded.explain_config is None
    assert torch.equal(loaded.attributions, out.attributions)


def test_a_heatmap_that_was_taken_out_is_not_written(output, tmp_path):
    output.layer_attributions = None
    output.save(tmp_path / "out.safetensors")
    assert ExplainGenerateOutput.load(tmp_path / "out.safetensors").layer_attributions is None


@pytest.mark.parametrize("missing", ["prompt_mask", "layers", "layer_names", "model_name"])
def test_a_file_without_what_every_output_has_is_refused_by_its_name(output, tmp_path, missing):
    path = tmp_path / "out.safetensors"
    tensors = {name: output[name].contiguous() for name in TENSORS if name != missing}
    metadata = {"format": "gradellm_hf", "format_version": 1, "config": None, "tokens": None}
    metadata |= {name: output[name] for name in ("prompt_length", "layers", "layer_names", "model_name")}
    write_tensors(path, tensors, {**metadata, missing: None})
    with pytest.raises(InvalidInputError, match=rf"out\.safetensors' cannot be read: .*{missing}"):
        ExplainGenerateOutput.load(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(output, tmp_path):
    path = tmp_path / "out.safetensors"
    output.save(path)
    before = path.read_bytes()

    class Broken:
        def convert_ids_to_tokens(self, ids):
            return [object() for _ in ids]  # no JSON

    with pytest.raises(TypeError):
        output.save(path, Broken())
    blocked = tmp_path / "directory.safetensors"
    blocked.mkdir()
    with pytest.raises(OSError, match=r"irectory"):
        output.save(blocked)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["directory.safetensors", "out.safetensors"]


def test_a_file_is_read_in_a_fresh_process_without_model_or_pickle(output, tmp_path):
    path = tmp_path / "out.safetensors"
    output.save(path, Letters())
    first_token = Letters().convert_ids_to_tokens(output.sequences[0])[0]
    program = f"""
import pickle, sys, torch
from gradellm_hf import ExplainGenerateOutput
def refuse(*args, **kwargs): raise AssertionError("pickle")
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
before = set(sys.modules)
out = ExplainGenerateOutput.load({str(path)!r})
assert not [name for name in sys.modules.keys() - before if name.startswith("transformers.models")]
print(out.attributions.double().sum().item(), out.prompt_length, out.tokens[0][0] == {first_token!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, length, same = done.stdout.split()
    assert float(total) == output.attributions.double().sum().item()
    assert (length, same) == ("9", "True")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.safetensors"):
        ExplainGenerateOutput.load(tmp_path / "nowhere.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "text.safetensors"
    path.write_text("This is no safetensors file.")
    with pytest.raises(InvalidInputError, match=r"is not a file that `ExplainGenerateOutput.save` wrote"):
        ExplainGenerateOutput.load(path)


def test_half_a_file_is_refused(output, tmp_path):
    path = tmp_path / "out.safetensors"
    output.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidInputError, match=r"is not a file that `ExplainGenerateOutput.save` wrote"):
        ExplainGenerateOutput.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": '"pt"'}], ids=["none", "no JSON", "another format"])
def test_safetensors_of_another_kind_are_refused(tmp_path, metadata):
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights.safetensors", metadata)
    with pytest.raises(InvalidInputError, match=r"`ExplainGenerateOutput.save` wrote"):
        ExplainGenerateOutput.load(tmp_path / "weights.safetensors")


def test_a_newer_format_is_refused_with_advice(tmp_path):
    metadata = {"format": '"gradellm_hf"', "format_version": "4"}
    save_file({"sequences": torch.zeros(1, 3)}, tmp_path / "new.safetensors", metadata)
    with pytest.raises(InvalidInputError, match=r"format version 4; this release .* up to 3\. Upgrade gradellm-hf"):
        ExplainGenerateOutput.load(tmp_path / "new.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": 2, "positive_only": False},
        {"layers": [0, -2], "spatial": "loosened", "engine": "stepwise", "step_chunk_size": 7},
        {"target": "contrast", "contrast_token_ids": [[3, 4]], "output_layer_attributions": True},
    ],
)
def test_a_configuration_survives_json(options):
    config = GradELLMConfig(**options)
    assert GradELLMConfig.from_json(config.to_json()) == config
    assert GradELLMConfig.from_json(GradELLMConfig.paper(layers=3).to_json()) == GradELLMConfig.paper(layers=3)


def test_a_callable_target_does_not_survive_json():
    with pytest.raises(InvalidInputError, match=r"was the function `first_logit`, which JSON cannot hold"):
        GradELLMConfig.from_json(GradELLMConfig(target=first_logit).to_json())
