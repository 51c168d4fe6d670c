"""Models over several simulated CUDA devices are explained as on one. `test_devices.py` runs this in a process of its own."""

import copy
from unittest.mock import patch

import accelerate
import pytest
import torch
from accelerate.utils import find_tied_parameters
from torch import nn
from transformers import LogitsProcessor

from benchmarks.gpu.part import run_part
from gradellm_hf import (
    GradELLM,
    GradELLMConfig,
    HeadWeights,
    explain_dataset,
    explain_generate,
    explain_sequences,
    explain_stream,
    verify,
)
from gradellm_hf.engines.memory import release_memory
from gradellm_hf.methods import get_method
from gradellm_hf.metrics import deletion, rank_correlation, soft_ns
from gradellm_hf.pipeline import ExplainedTextGenerationPipeline
from tests.support import simulated_devices
from tests.support.architectures.survey import PROMPT, random_ids
from tests.support.architectures.tiny_configs import tiny_model
from tests.support.dataset_job import texts, tiny_llama
from tests.support.small_llama import assert_same_heatmaps
from tests.support.tiny_multimodal import prompt_with_images, tiny_multimodal
from tests.support.tiny_tokenizers import byte_level_bpe

DEVICES = simulated_devices.install()

REPLAYED = ["llama", "mistral", "gpt2", "qwen2", "qwen2_moe", "gpt_oss"]
WITHOUT_INTERFACE = ["bloom", "falcon", "gpt_neo", "mpt", "xglm", "openai-gpt"]
HYBRID = ["lfm2", "bamba", "jamba"]
STEPWISE = [*WITHOUT_INTERFACE, *HYBRID]

#: Where the layers are, from the lowest on. What comes before them is at the first place, what comes after at the last.
PLACES = {
    "two devices": ("cuda:0", "cuda:1"),
    "three devices": ("cuda:2", "cuda:0", "cuda:3"),
    "a device and the host": ("cuda:1", "cpu"),
    "two devices and the disk": ("cuda:0", "disk", "cuda:1"),
}


def device_map(model, places):
    """Where each module is."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    layers_name, layers = max(lists, key=lambda entry: len(entry[1]))
    result = {}

    def put(module, prefix):
        place = places[0]
        for name, child in module.named_children():
            name = prefix + name
            if name == layers_name:
                result.update({f"{name}.{i}": places[i * len(places) // len(layers)] for i in range(len(layers))})
                place = places[-1]
            elif layers_name.startswith(f"{name}."):
                put(child, f"{name}.")
                place = places[-1]
            else:
                result[name] = place

    put(model, "")
    for tied in find_tied_parameters(model):  # the head has the weights of the embedding
        for name in tied:
            result.update({module: places[0] for module in result if name.startswith(f"{module}.")})
    return result


def spread(model, places, folder):
    """A copy of the model, over these places."""
    copied = copy.deepcopy(model)
    # Accelerate knows tied weights by the addresses that they had before: no weight that it loads later may get one of these.
    addresses = list(copied.state_dict().values())
    main = next(place for place in places if place not in ("cpu", "disk"))
    spread = accelerate.dispatch_model(copied, device_map(model, places), main_device=main, offload_dir=folder)
    spread.addresses = addresses
    return spread


@pytest.fixture(scope="module")
def models():
    """Each type on the host, in float32."""
    made = {}

    def model(model_type):
        if model_type not in made:
            made[model_type] = tiny_model(model_type).float()
        return made[model_type]

    return model


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def places(request):
    return request.param


def padded(device="cpu"):
    """A batch whose second row is padded."""
    ids = random_ids(length=PROMPT)
    mask = torch.ones_like(ids)
    ids[1, :4], mask[1, :4] = 0, 0
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def assert_same(out, expected):
    """The same text and explanation, wherever it is."""
    for name, value in expected.items():
        if name in ("sequences", "step_mask"):
            assert torch.equal(out[name].cpu(), value), name
        elif name in ("attributions", "layer_attributions", "target_scores", "token_probabilities"):
            assert_same_heatmaps(out[name].cpu(), value)


def config(engine="replay", **options):
    return GradELLMConfig(engine=engine, output_layer_attributions=True, **options)


def check(model, whole, device, explain_config=None, **options):
    options = {"max_new_tokens": 4, "explain_config": explain_config, **options}
    torch.manual_seed(0)
    found = explain_generate(model, **padded(device), **options)
    torch.manual_seed(0)
    assert_same(found, explain_generate(whole, **padded(), **options))


# Every kind of model. `pyproject.toml` makes a GradELLMWarning an error, so what is replayed here is replayed there.


@pytest.mark.parametrize("model_type", REPLAYED)
def test_both_engines_explain_as_on_one_device(models, model_type, places, tmp_path):
    whole = models(model_type)
    model = spread(whole, places, tmp_path)
    for engine in ("replay", "stepwise"):
        check(model, whole, places[0], config(engine))


@pytest.mark.parametrize("model_type", STEPWISE)
def test_models_that_cannot_be_replayed_are_explained_as_on_one_device(models, model_type, places, tmp_path):
    whole = models(model_type)
    check(spread(whole, places, tmp_path), whole, places[0], config("stepwise"))


# Not LFM2: Transformers itself multiplies the mask on the host with states on a device.
@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids` being on a device type:UserWarning")
@pytest.mark.parametrize("model_type", [*REPLAYED, *WITHOUT_INTERFACE, "bamba", "jamba"])
def test_a_prompt_on_the_host_is_explained_as_on_one_device(models, model_type, tmp_path):
    whole = models(model_type)
    engine = "replay" if model_type in REPLAYED else "stepwise"
    on_one = accelerate.cpu_offload(copy.deepcopy(whole), torch.device("cuda:1"))
    for model in (spread(whole, PLACES["three devices"], tmp_path), on_one):
        check(model, whole, "cpu", config(engine))


# Every way to explain, over three devices.


@pytest.fixture(scope="module")
def whole(models):
    return models("llama")


@pytest.fixture(scope="module")
def model(whole, tmp_path_factory):
    return spread(whole, PLACES["three devices"], tmp_path_factory.mktemp("offloaded"))


WAYS = {
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "several answers": {"num_beams": 2, "num_return_sequences": 2, "early_stopping": True},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "sampling": {"do_sample": True},
    "guidance": {"guidance_scale": 1.5},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "raw logits": {"return_dict_in_generate": True, "output_logits": True, "output_scores": True},
    "paper": {"explain_config": GradELLMConfig.paper()},
    "paper, all layers": {"explain_config": GradELLMConfig.paper(layers="all", output_layer_attributions=True)},
    "loosened": {"explain_config": GradELLMConfig(spatial="loosened")},
    "positive part of layers": {"explain_config": GradELLMConfig(positive_part="layer")},
    "signed": {"explain_config": GradELLMConfig(positive_only=False)},
    "some layers": {"explain_config": GradELLMConfig(layers=[0, 2], output_layer_attributions=True)},
    "last layer": {"explain_config": GradELLMConfig(layers=1)},
    "probability": {"explain_config": GradELLMConfig(target="probability")},
    "contrast": {"explain_config": GradELLMConfig(target="contrast", contrast_token_ids=5)},
    "chunks": {"explain_config": GradELLMConfig(step_chunk_size=2)},
    "the last step": {"steps": [-1]},
    "some steps of beams": {"steps": [1, 3], "num_beams": 2, "explain_config": GradELLMConfig(step_chunk_size=2)},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_explain_is_as_on_one_device(model, whole, way):
    check(model, whole, "cuda:2", **WAYS[way])


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
@pytest.mark.parametrize("feature", ["contribution", "magnitude"])
def test_weighted_heads_are_as_on_one_device(model, whole, feature, engine):
    values = torch.rand(whole.config.num_hidden_layers, whole.config.num_attention_heads)
    check(model, whole, "cuda:2", config(engine, head_weights=HeadWeights(values, feature, "llama")))


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_oss", "bloom", "lfm2"])
def test_beams_of_every_kind_are_as_on_one_device(models, model_type, tmp_path):
    whole = models(model_type)
    engine = "replay" if model_type in REPLAYED else "stepwise"
    model = spread(whole, PLACES["three devices"], tmp_path)
    check(model, whole, "cuda:2", config(engine), num_beams=3, num_return_sequences=2)


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_a_prompt_of_embeddings_is_explained_as_on_one_device(model, whole, engine):
    found, expected = (
        explain_generate(
            m,
            inputs_embeds=m.get_input_embeddings()(padded(device)["input_ids"]).detach(),
            attention_mask=padded(device)["attention_mask"],
            max_new_tokens=4,
            explain_config=config(engine),
        )
        for m, device in ((model, "cuda:2"), (whole, "cpu"))
    )
    assert_same(found, expected)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_text_after_an_image_is_explained_as_on_one_device(name, tmp_path):
    whole = tiny_multimodal(name).float()
    prompt = prompt_with_images(name, [[2, 5], [3, 2]]).inputs
    prompt["pixel_values"] = prompt["pixel_values"].float()
    model = spread(whole, PLACES["three devices"], tmp_path)
    found, expected = (
        explain_generate(m, **{name: x.to(device) for name, x in prompt.items()}, max_new_tokens=3, explain_config=config())
        for m, device in ((model, "cuda:2"), (whole, "cpu"))
    )
    assert found.image_mask.any()
    assert_same(found, expected)


def test_given_text_is_explained_as_on_one_device(model, whole):
    ids = random_ids()
    for device in ("cpu", "cuda:2", "cuda:0"):
        assert_same(explain_sequences(model, ids.to(device), PROMPT), explain_sequences(whole, ids, PROMPT))
    assert verify(model) < 1e-4


@pytest.mark.parametrize("model_type", ["llama", "bloom", "openai-gpt", "lfm2"])
def test_a_stream_is_as_on_one_device(models, model_type, tmp_path):
    whole = models(model_type)
    model = spread(whole, PLACES["three devices"], tmp_path)
    streams = (explain_stream(m, **padded(d), max_new_tokens=3) for m, d in ((model, "cuda:2"), (whole, "cpu")))
    for step, expected in zip(*streams, strict=True):
        assert torch.equal(step.token_ids.cpu(), expected.token_ids)
        assert_same_heatmaps(step.attributions.cpu(), expected.attributions)


class CurrentDevices(LogitsProcessor):
    """The devices that are current while `generate` runs."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(torch.cuda.current_device())
        return scores


def test_a_stream_is_made_on_the_device_that_is_current_where_it_is_read(model):
    current = CurrentDevices()
    with torch.cuda.device(3):
        assert len(list(explain_stream(model, **padded("cuda:2"), max_new_tokens=3, logits_processor=[current]))) == 3
        assert torch.cuda.current_device() == 3
    assert current.seen == [3, 3, 3]


def test_a_device_that_runs_out_of_memory_explains_in_smaller_chunks(model, whole):
    ids = random_ids(length=40)
    expected = explain_sequences(whole, ids, 16)

    def explain():
        return explain_sequences(model, ids.to("cuda:2"), 16, explain_config=GradELLMConfig(step_chunk_size=24))

    explain()
    before = DEVICES.bytes(0)
    DEVICES.reset_peak(0)
    explain()
    DEVICES.set_capacity(0, before + (DEVICES.peak(0) - before) * 3 // 4)
    try:
        with patch("gradellm_hf.engines.loop.release_memory", wraps=release_memory) as halved:
            assert_same(explain(), expected)
        assert halved.called
    finally:
        DEVICES.set_capacity(0, 0)


@pytest.mark.parametrize("metric", [rank_correlation, soft_ns, deletion])
def test_metrics_are_those_on_one_device(model, whole, metric):
    ids = random_ids()
    heatmaps = explain_sequences(whole, ids, PROMPT).attributions
    for device in ("cpu", "cuda:2", "cuda:3"):
        found = metric(model, ids.to(device), PROMPT, heatmaps.to(device))
        torch.testing.assert_close(found.cpu(), metric(whole, ids, PROMPT, heatmaps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["saliency", "input_x_gradient", "integrated_gradients", "attention_mean", "occlusion"])
def test_other_methods_are_as_on_one_device(model, whole, name):
    ids = random_ids()
    assert_same_heatmaps(get_method(name)(model, ids.to("cuda:2"), PROMPT).cpu(), get_method(name)(whole, ids, PROMPT))


# From text to text


@pytest.fixture(scope="module")
def reading():
    """A model that reads text, over three devices and on one; and its tokenizer."""
    whole = tiny_llama()
    return spread(whole, PLACES["three devices"], None), whole, byte_level_bpe()


def assert_same_explanation(actual, expected):
    assert actual.tokens == expected.tokens
    assert actual.attributions.device == torch.device("cpu")
    assert_same_heatmaps(actual.attributions, expected.attributions)


def test_text_is_explained_as_on_one_device(reading):
    model, whole, tokenizer = reading
    on_one = accelerate.cpu_offload(copy.deepcopy(whole), torch.device("cuda:1"))
    for options in ({"max_new_tokens": 4}, {"target": [" Rome", " the capital"]}):
        expected = GradELLM(whole, tokenizer).explain(["Italy is", "the capital of"], **options)
        for spread_model in (model, on_one):
            found = GradELLM(spread_model, tokenizer).explain(["Italy is", "the capital of"], **options)
            for actual, wanted in zip(found, expected, strict=True):
                assert_same_explanation(actual, wanted)


def test_the_pipeline_explains_as_on_one_device(reading):
    model, whole, tokenizer = reading
    options = {"max_new_tokens": 4, "do_sample": False}
    found, expected = (
        ExplainedTextGenerationPipeline(model=m, tokenizer=tokenizer)("Italy is", **options)[0] for m in (model, whole)
    )
    assert found["generated_text"] == expected["generated_text"]
    assert_same_explanation(found["explanation"], expected["explanation"])


def test_a_job_over_many_prompts_explains_as_on_one_device(reading, tmp_path):
    model, whole, tokenizer = reading
    found, expected = (
        explain_dataset(m, texts(5), tmp_path / str(i), tokenizer=tokenizer, batch_size=2, max_new_tokens=3)
        for i, m in enumerate((model, whole))
    )
    for actual, wanted in zip(found, expected, strict=True):
        assert_same_explanation(actual, wanted)


def test_a_model_that_is_loaded_over_devices_explains_as_on_one(reading, tmp_path):
    _, whole, tokenizer = reading
    for part in (whole, tokenizer):
        part.save_pretrained(tmp_path)
    size = sum(weight.numel() * weight.element_size() for weight in whole.parameters())
    memory = {0: int(size * 0.6), 2: int(size * 0.6), "cpu": 10 * size}
    loaded = GradELLM.from_pretrained(tmp_path, max_memory=memory, dtype=torch.float32)
    assert len(set(loaded.model.hf_device_map.values())) > 1
    assert_same_explanation(*(m.explain("Italy is", max_new_tokens=4) for m in (loaded, GradELLM(whole, tokenizer))))


# The benchmarks for GPUs: what they do about devices, kernels and memory, in tiny shapes.


@pytest.mark.parametrize("part", ["exactness", "ratio", "long_text", "biggest"])
def test_the_benchmarks_for_gpus_run_on_a_device(part, tmp_path):
    result = run_part(part, tmp_path, torch.device("cuda:1"), "tiny", 300, scratch=tmp_path)
    assert result.status == "done", result.error
    ran = {row.what: row for row in result.rows if row.outcome != "not run"}
    lacking = ("torch.compile", "offloaded")  # simulated devices have neither a compiler nor streams
    failed = [what for what, row in ran.items() if row.outcome == "failed"]
    assert [what for what in failed if not any(name in what for name in lacking)] == []
    if part == "exactness":
        assert [what for what, row in ran.items() if row.outcome == "missed"] == []
        assert "float32, layers on 1, cpu, disk" in ran
        assert "bfloat16, layers on 1, 2, 3, 0" in ran


def test_the_benchmark_of_the_biggest_model_grows_it_until_memory_ends(tmp_path):
    DEVICES.set_capacity(2, DEVICES.bytes(2) + 470_000)  # other tests keep their models
    try:
        result = run_part("biggest", tmp_path, torch.device("cuda:2"), "tiny", 300, scratch=tmp_path)
    finally:
        DEVICES.set_capacity(2, 0)
    assert result.status == "done", result.error
    for where in ("on the card alone", "with offload"):
        *fit, last = (row for row in result.rows if row.what.startswith(where))
        assert [row.outcome for row in fit] == ["measured"]
        assert last.values["out_of_memory"]
