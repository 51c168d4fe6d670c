"""A model inside of PEFT, accelerate or `torch.compile` is explained as the plain model."""

import copy

import accelerate
import peft
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from gradellm_hf import (
    GradELLMConfig,
    InvalidInputError,
    UnsupportedArchitectureError,
    explain_generate,
    explain_sequences,
    explain_stream,
    verify,
)
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, random_ids, small_llama

pytestmark = pytest.mark.slow

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


class Forwarding(nn.Module):
    """Passes everything on, as wrappers for training do; what its `forward` takes is not to be seen."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class WithValueHead(nn.Module):
    """Has no more of a model than `generate` and `config`, as wrappers for reinforcement learning have."""

    def __init__(self, inner):
        super().__init__()
        self.pretrained_model, self.v_head, self.config = inner, nn.Linear(48, 1), getattr(inner, "config", None)

    def forward(self, input_ids, **kwargs):
        out = self.pretrained_model(input_ids, output_hidden_states=True, **kwargs)
        return out.logits, self.v_head(out.hidden_states[-1])

    def generate(self, *args, **kwargs):
        return self.pretrained_model.generate(*args, **kwargs)


def small_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=48, n_layer=5, n_head=4, initializer_range=0.3, eos_token_id=None, pad_token_id=0)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("build", [lambda: small_llama(head_dim=8), small_gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("wrap", [Forwarding, WithValueHead, lambda model: WithValueHead(Forwarding(with_lora(model)))])
def test_a_left_padded_batch_of_a_model_in_a_wrapper_is_explained_as_that_of_the_model(build, wrap):
    plain = build()
    if wrap not in (Forwarding, WithValueHead) and plain.config.model_type == "gpt2":
        pytest.skip("has no such projections for LoRA")
    model = wrap(copy.deepcopy(plain)).eval()
    if wrap not in (Forwarding, WithValueHead):
        plain = with_lora(plain).merge_and_unload()
    assert_explained_alike(model, plain)
    prompts = padded_prompts()
    steps = zip(
        explain_stream(model, **prompts, max_new_tokens=4), explain_stream(plain, **prompts, max_new_tokens=4), strict=True
    )
    for step, expected in steps:
        assert_same_heatmaps(step.attributions, expected.attributions)
    mask = torch.cat([prompts["attention_mask"], torch.ones(3, 4, dtype=torch.long)], dim=1)
    sequences = plain.generate(**prompts, max_new_tokens=4)
    assert_same_heatmaps(
        explain_sequences(model, sequences, 9, mask).attributions, explain_sequences(plain, sequences, 9, mask).attributions
    )


def test_virtual_tokens_are_refused_in_a_wrapper_too(llama):
    model = peft.get_peft_model(llama, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UnsupportedArchitectureError, match="virtual tokens in front of the prompt"):
        explain_generate(WithValueHead(model).eval(), random_ids(1, 5), max_new_tokens=2)


class Opaque(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("explain", [lambda model: explain_generate(model, random_ids(1, 5)), verify])
def test_a_model_whose_arguments_cannot_be_seen_is_refused(llama, explain):
    model = Opaque(llama.config).eval()
    with pytest.raises(
        InvalidInputError, match=r"`Opaque.forward` has neither `input_ids` nor `position_ids` .*\['args', 'kwargs'\]"
    ):
        explain(model)


def test_two_models_in_a_wrapper_are_not_mistaken_for_one(llama):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.policy, self.reference, self.config = llama, copy.deepcopy(llama), llama.config

        def forward(self, *args, **kwargs):
            return self.policy(*args, **kwargs)

        def generate(self, *args, **kwargs):
            return self.reference.generate(*args, **kwargs)

    with pytest.raises(InvalidInputError, match="no Transformers model was found inside"):
        explain_generate(Pair().eval(), random_ids(1, 5), max_new_tokens=2)


def test_tokens_that_another_model_wrote_are_refused(llama):
    other = copy.deepcopy(llama)

    def loop(model, input_ids, **kwargs):
        return other.generate(input_ids, max_new_tokens=3)

    with pytest.raises(InvalidInputError, match="without calling the model that is to be explained"):
        explain_generate(llama, random_ids(1, 5), custom_generate=loop)
