"""A model inside of PEFT, accelerate or `torch.compile` is explained as the plain model."""

import copy

import accelerate
import peft
import pytest
import torch
from small_llama import assert_same_heatmaps, padded_prompts, random_ids, small_llama

from gradellm_hf import GradELLMConfig, UnsupportedArchitectureError, explain_generate, explain_sequences, verify

CONFIGS = {
    "replay": GradELLMConfig(),
    "two layers": GradELLMConfig(layers=[1, 3], spatial="loosened"),
    "stepwise": GradELLMConfig(engine="stepwise"),
    "paper": GradELLMConfig.paper(),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request):
    return request.param


@pytest.fixture
def llama():
    return small_llama(head_dim=8)


BEAMS = {"num_beams": 3, "num_return_sequences": 2}


def assert_explained_alike(model, plain, config=None, strategies=({}, BEAMS), tolerance=1e-4):
    """Generated text and existing text."""
    for options in strategies:
        out = explain_generate(model, **padded_prompts(), max_new_tokens=5, explain_config=config, **options)
        expected = explain_generate(plain, **padded_prompts(), max_new_tokens=5, explain_config=config, **options)
        assert torch.equal(out.sequences, expected.sequences)
        assert_same_heatmaps(out.attributions, expected.attributions, tolerance)
    sequences = random_ids(2, 11)
    assert_same_heatmaps(
        explain_sequences(model, sequences, 6, explain_config=config).attributions,
        explain_sequences(plain, sequences, 6, explain_config=config).attributions,
        tolerance,
    )


def with_lora(model, **options):
    torch.manual_seed(7)
    lora = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], init_lora_weights=False, **options)
    return peft.get_peft_model(model, lora).eval()


def test_lora_is_explained_as_the_merged_model(llama, config):
    model = with_lora(copy.deepcopy(llama))
    merged = with_lora(copy.deepcopy(llama)).merge_and_unload()
    assert_explained_alike(model, merged, config)
    ids = random_ids(2, 11)
    mine, base = (explain_sequences(m, ids, 6, explain_config=config).attributions for m in (model, llama))
    assert (mine - base).abs().max() > 0.01 * base.abs().max()  # the adapter is not zero


def test_lora_that_is_switched_off_is_the_base_model(llama):
    model = with_lora(copy.deepcopy(llama))
    with model.disable_adapter():
        assert_explained_alike(model, llama)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }


def test_mixed_precision_lora_is_explained(llama):
    out = explain_generate(with_lora(llama.bfloat16()), random_ids(2, 7), max_new_tokens=4)
    assert out.attributions.isfinite().all()
    assert (out.attributions.sum(-1) > 0).all()


@pytest.mark.parametrize("method", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_virtual_tokens_are_refused(llama, method):
    model = peft.get_peft_model(llama, method(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    with pytest.raises(UnsupportedArchitectureError, match=r"virtual tokens in front of the prompt.* Use an adapter that"):
        explain_generate(model, random_ids(1, 5), max_new_tokens=2)


def test_a_model_offloaded_to_cpu(llama, config):
    model = accelerate.cpu_offload(copy.deepcopy(llama), execution_device=torch.device("cpu"))
    assert model.model.layers[0].mlp.up_proj.weight.is_meta
    assert_explained_alike(model, llama, config)
    assert model.model.layers[0].mlp.up_proj.weight.is_meta


def test_a_model_offloaded_to_disk(llama, config, tmp_path):
    model = accelerate.disk_offload(copy.deepcopy(llama), tmp_path, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_explained_alike(model, llama, config)
    assert all(parameter.is_meta and parameter.grad is None for parameter in model.parameters())


def test_a_model_spread_over_cpu_and_disk(llama, config, tmp_path):
    device_map = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    device_map |= {f"model.layers.{i}": "disk" if i in (1, 4) else "cpu" for i in range(5)}
    model = accelerate.dispatch_model(copy.deepcopy(llama), device_map, main_device="cpu", offload_dir=tmp_path)
    assert [layer.mlp.up_proj.weight.is_meta for layer in model.model.layers] == [False, True, False, False, True]
    assert_explained_alike(model, llama, config)


def test_lora_on_an_offloaded_model_is_explained_as_the_merged_model(llama, config, tmp_path):
    merged = with_lora(copy.deepcopy(llama)).merge_and_unload()
    model = with_lora(copy.deepcopy(llama))
    model.base_model.model = accelerate.disk_offload(model.base_model.model, tmp_path, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_explained_alike(model, merged, config)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("part", ["wrapped", "in place", "wrapped layer", "layer in place", "wrapped attention"])
def test_a_compiled_model_is_explained_as_the_plain_one(llama, part):
    model = copy.deepcopy(llama)
    layer = model.model.layers[2]
    if part == "wrapped":
        model = torch.compile(model, backend="eager")
    elif part == "in place":
        model.compile(backend="eager")
    elif part == "wrapped layer":
        model.model.layers[2] = torch.compile(layer, backend="eager")
    elif part == "layer in place":
        layer.compile(backend="eager")
    else:
        layer.self_attn = torch.compile(layer.self_attn, backend="eager")
    assert_explained_alike(model, llama, strategies=[{}])


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("config", [CONFIGS["stepwise"], CONFIGS["paper"]], ids=["stepwise", "paper"])
def test_a_compiled_model_is_explained_in_every_way(llama, config):
    assert_explained_alike(torch.compile(copy.deepcopy(llama), backend="eager"), llama, config, strategies=[{}])


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_is_still_compiled_afterwards(llama):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    model, ids = torch.compile(llama, backend=backend), random_ids(1, 6)
    with torch.no_grad():
        model(ids)
        compiled = len(graphs)
        explain_sequences(model, ids, 4)
        assert len(graphs) == compiled > 0  # the explanation itself compiles nothing
        model(ids)
        assert len(graphs) == compiled


def test_wrapped_models_are_verified_too(llama):
    assert verify(with_lora(copy.deepcopy(llama))) < 1e-4
    assert verify(accelerate.cpu_offload(copy.deepcopy(llama), execution_device=torch.device("cpu"))) < 1e-4
    assert verify(torch.compile(llama, backend="eager")) < 1e-4
