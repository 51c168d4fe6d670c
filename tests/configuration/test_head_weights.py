"""Weights of the heads: their file, what is refused, and that every surface uses them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gradellm_hf import (
    Explanation,
    GradELLM,
    GradELLMConfig,
    GradELLMWarning,
    HeadWeights,
    InvalidInputError,
    explain_dataset,
    explain_generate,
    explain_stream,
)
from gradellm_hf.cli import main
from gradellm_hf.pipeline import ExplainedTextGenerationPipeline
from gradellm_hf.results.output import ExplainGenerateOutput
from tests.support.evaluated import model_and_tokenizer
from tests.support.small_llama import random_ids, small_llama

L, H = 5, 6


def random_weights(layers=L, heads=H, feature="magnitude", model_type="llama", **fields):
    values = torch.rand(layers, heads, generator=torch.Generator().manual_seed(7))
    return HeadWeights(values, feature, model_type, **fields)


WEIGHTS = random_weights(fingerprint="abc", report={"held_out": 0.5})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "head_weights.safetensors"
    WEIGHTS.save(path)
    return path


# The file


def test_a_file_holds_all_of_it(written):
    assert HeadWeights.load(written) == WEIGHTS
    assert HeadWeights.load(str(written.parent)) == WEIGHTS  # a folder
    assert HeadWeights.load(written).report == {"held_out": 0.5}
    assert torch.equal(load_file(written)["values"], WEIGHTS.values)


def test_a_repository_on_the_hub_holds_them_under_one_name(written, tmp_path, monkeypatch):
    repository = tmp_path / "models--someone--weights"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(written, snapshot)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))  # downloaded before
    assert HeadWeights.load("someone/weights") == WEIGHTS
    assert GradELLMConfig(head_weights="someone/weights").head_weights == WEIGHTS
    with pytest.raises(FileNotFoundError, match=r"no file or folder 'someone/other' here, and no 'head_weights\.safetensors'"):
        HeadWeights.load("someone/other")


def test_other_files_and_other_things_are_refused_by_name(written, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.safetensors"):
        HeadWeights.load("nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file .*head_weights\.safetensors"):
        HeadWeights.load(tmp_path)
    other = tmp_path / "pickle.bin"
    torch.save({"values": WEIGHTS.values}, other)
    with pytest.raises(InvalidInputError, match=r"not a file that `HeadWeights\.save` wrote"):
        HeadWeights.load(other)
    model, tokenizer = model_and_tokenizer()
    GradELLM(model, tokenizer).explain("Rome is", max_new_tokens=1).save(tmp_path / "explanation.safetensors")
    with pytest.raises(InvalidInputError, match=r"safetensors file, but not one that `HeadWeights\.save` wrote"):
        HeadWeights.load(tmp_path / "explanation.safetensors")
    content = bytearray(written.read_bytes())
    content[-2] ^= 1
    other.write_bytes(content)
    with pytest.raises(InvalidInputError, match="`values` does not have the checksum"):
        HeadWeights.load(other)
    with pytest.raises(InvalidInputError, match=r"`head_weights` are in a file, .* got 5"):
        HeadWeights.load(5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], r"got shape \[2\]"),
        (torch.zeros(0, 3), r"got shape \[0, 3\]"),
        ([[0.0, 0.0]], r"not all of them 0; got values from 0\.0 to 0\.0"),
        ([[1.0, -0.5]], r"got values from -0\.5 to 1\.0"),
        ([[1.0, float("inf")]], "got values from 1.0 to inf"),
        ([[1.0, float("nan")]], "got values from nan"),
        ("ones", "`values` must be numbers of at least 0 .* got 'ones'"),
    ],
)
def test_weights_that_mean_nothing_are_refused(values, message):
    with pytest.raises(InvalidInputError, match=message):
        HeadWeights(values, "magnitude", "llama")


def test_what_is_weighted_is_one_of_two(written):
    with pytest.raises(InvalidInputError, match="`feature` must be 'contribution' or 'magnitude', got 'attention'"):
        HeadWeights([[1.0]], "attention", "llama")


def test_the_weights_stay_as_they_were_given():
    values = torch.ones(2, 3)
    weights = HeadWeights(values, "magnitude", "llama")
    values.zero_()
    assert weights.values.all()


# In a configuration


def test_a_configuration_takes_them_or_their_file_and_goes_through_json(written):
    config = GradELLMConfig(head_weights=WEIGHTS, layers=2)
    assert GradELLMConfig(head_weights=written, layers=2) == config
    assert GradELLMConfig(head_weights=str(written), layers=2) == config
    assert GradELLMConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["head_weights"]["shape"] == [L, H]
    others = [random_weights(feature="contribution"), HeadWeights(WEIGHTS.values + 1, "magnitude", "llama"), None]
    for other in others:
        assert GradELLMConfig(head_weights=other, layers=2) != config
    assert len({WEIGHTS.digest, *(other.digest for other in others[:2])}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": "AAA"}, "`values` of `head_weights` are not numbers of their shape"),
        ({"values": "AAAA"}, "`values` of `head_weights` are not numbers of their shape"),
        ({"shape": [L, H + 1]}, "`values` of `head_weights` are not numbers of their shape"),
        ({"shape": [L]}, r"`head_weights`\['shape'\] must be a list of 2"),
        ({"feature": "attention"}, r"`head_weights`\['feature'\] must be one of"),
        ({"model_type": 5}, r"`head_weights`\['model_type'\] must be a text"),
    ],
)
def test_damaged_json_is_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        GradELLMConfig.from_dict({"head_weights": {**WEIGHTS.to_dict(), **change}})


def test_weights_of_another_shape_are_refused_before_anything_is_generated():
    generated = []
    config = GradELLMConfig(head_weights=random_weights(L, H + 1))
    expected = r"5 attention layers of 7 heads, but this `llama` has 5 of 6\. Learn .* `gradellm calibrate"
    with pytest.raises(InvalidInputError, match=expected):
        explain_generate(
            small_llama(),
            random_ids(1, 5),
            max_new_tokens=2,
            explain_config=config,
            logits_processor=[lambda ids, scores: generated.append(1) or scores],
        )
    assert not generated


def test_weights_of_another_kind_of_model_are_warned_about():
    config = GradELLMConfig(head_weights=random_weights(model_type="mistral"))
    with pytest.warns(GradELLMWarning, match="learned with a `mistral`, and this is a `llama`"):
        explain_generate(small_llama(), random_ids(1, 5), max_new_tokens=2, explain_config=config)


# Everywhere


def test_every_surface_uses_them_and_says_so(tmp_path, written):
    model, tokenizer = model_and_tokenizer()
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    weights = random_weights(*shape, model_type=model.config.model_type)
    config = GradELLMConfig(head_weights=weights)
    options = {"max_new_tokens": 3, "do_sample": False}
    inputs = tokenizer("Rome is", return_tensors="pt")
    out = explain_generate(model, **inputs, explain_config=config, **options)
    plain = explain_generate(model, **inputs, **options)
    assert not torch.allclose(out.attributions, plain.attributions)

    def same(attributions):
        torch.testing.assert_close(attributions, out.attributions[0])

    for step in explain_stream(model, **inputs, explain_config=config, **options):
        torch.testing.assert_close(step.attributions, out.attributions[:, step.step, : step.attributions.shape[1]])
    explanation = GradELLM(model, tokenizer, explain_config=config).explain("Rome is", **options)
    same(explanation.attributions)
    pipeline = ExplainedTextGenerationPipeline(model=model, tokenizer=tokenizer)
    same(pipeline("Rome is", explain_config=config, **options)[0]["explanation"].attributions)
    jobs = explain_dataset(model, ["Rome is"], tmp_path / "job", tokenizer=tokenizer, explain_config=config, **options)
    same(jobs[0].attributions)
    assert jobs[0].explain_config == config
    explanation.save(tmp_path / "e.safetensors")
    assert Explanation.load(tmp_path / "e.safetensors").explain_config == config
    out.save(tmp_path / "o.safetensors")
    assert ExplainGenerateOutput.load(tmp_path / "o.safetensors").explain_config == config

    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    weights.save(tmp_path / "w.safetensors")
    shared = ["--max-new-tokens", "3", "--head-weights", str(tmp_path / "w.safetensors")]
    saved = tmp_path / "command.safetensors"
    assert main(["explain", str(tmp_path / "model"), "--prompt", "Rome is", *shared, "--save", str(saved)]) == 0
    same(Explanation.load(saved).attributions)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Rome is"}\n')
    files = ["--prompts", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "command")]
    assert main(["dataset", str(tmp_path / "model"), *files, *shared, "--generate", '{"do_sample": false}']) == 0
    assert main(["explain", str(tmp_path / "model"), "--prompt", "Rome is", "--head-weights", str(tmp_path / "none")]) == 2


def test_a_job_with_other_weights_is_another_job(tmp_path):
    model, tokenizer = model_and_tokenizer()
    shape = model.config.num_hidden_layers, model.config.num_attention_heads

    def explain(feature):
        config = GradELLMConfig(head_weights=random_weights(*shape, feature=feature, model_type=model.config.model_type))
        explain_dataset(model, ["Rome is"], tmp_path, tokenizer=tokenizer, explain_config=config, max_new_tokens=1)

    explain("magnitude")
    with pytest.raises(InvalidInputError, match=r"another job.*\n  explain_config\.head_weights\.feature: there 'magnitude'"):
        explain("contribution")
