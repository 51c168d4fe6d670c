"""Quantised models are explained through their activations, as the same model with its weights dequantised is."""

import copy
import logging

import bitsandbytes.functional
import pytest
import torch
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from gradellm_hf import (
    GradELLMConfig,
    GradELLMWarning,
    UnsupportedArchitectureError,
    explain_generate,
    explain_sequences,
    verify,
)
from gradellm_hf.architecture.quantization import is_quantized
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, small_llama

pytestmark = pytest.mark.slow

BACKENDS = {
    "bitsandbytes, 4 bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
    "bitsandbytes, 4 bit, NF4, nested": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    ),
    "bitsandbytes, 8 bit": BitsAndBytesConfig(load_in_8bit=True),
    "torchao, int8 weights": TorchAoConfig(Int8WeightOnlyConfig()),
    "torchao, float8 weights": TorchAoConfig(Float8WeightOnlyConfig()),
    "torchao, weights of any width": TorchAoConfig(IntxWeightOnlyConfig()),
    "quanto, int8": QuantoConfig("int8"),
    "quanto, int4": QuantoConfig("int4"),
    "quanto, int2": QuantoConfig("int2"),
    "quanto, float8": QuantoConfig("float8"),
}
#: Of the largest score. bitsandbytes' 8-bit layers quantise activations too, in float16, and which of their columns they
#: leave alone depends on the tokens of a call; its 4-bit kernels for inference on a CPU keep scales in bfloat16.
TOLERANCES = {"bitsandbytes, 8 bit": 2e-1, "bitsandbytes, 4 bit": 3e-2, "bitsandbytes, 4 bit, NF4, nested": 3e-2}


@pytest.fixture(scope="module")
def plain():
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    return small_llama(vocab_size=96, initializer_range=0.1, **sizes)


@pytest.fixture(scope="module")
def load(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    plain.save_pretrained(folder)

    def load_quantized(config):
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=copy.deepcopy(config), dtype=torch.float32, device_map="cpu"
        ).eval()

    return load_quantized


def dequantized(weight):
    if hasattr(weight, "quant_state"):
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    if hasattr(weight, "SCB"):
        return weight.data * weight.SCB[:, None] / 127
    return weight.dequantize() if hasattr(weight, "dequantize") else weight


def twin(model, plain):
    """A plain model with the quantised model's weights. Made before that first runs: bitsandbytes repacks weights then."""
    weights = {name: dequantized(weight).float() for name, weight in model.named_parameters()}
    assert any(not torch.equal(weights[name], weight) for name, weight in plain.named_parameters())
    copied = copy.deepcopy(plain)
    copied.load_state_dict(weights, strict=False)
    return copied


@pytest.mark.parametrize("name", BACKENDS)
def test_a_quantised_model_is_explained_as_its_weights_say(name, load, plain):
    model = load(BACKENDS[name])
    unquantised = twin(model, plain)
    prompts = padded_prompts()
    expected_ids = model.generate(**prompts, max_new_tokens=5)
    out = explain_generate(model, **prompts, max_new_tokens=5)
    assert torch.equal(out.sequences, expected_ids)
    mask = torch.cat([prompts["attention_mask"], out.step_mask.long()], dim=1)
    expected = explain_sequences(unquantised, out.sequences, out.prompt_length, mask)
    assert_same_heatmaps(out.attributions, expected.attributions, TOLERANCES.get(name, 1e-4))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_quantised_model_that_mixes_tokens_is_not_replayed(load):
    """What it computes may depend on the number of tokens of a call, but not that much."""
    model, ids = load(BACKENDS["torchao, int8 weights"]), padded_prompts((9,))["input_ids"]
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, hidden: hidden + hidden.mean(1, keepdim=True))
    with pytest.warns(GradELLMWarning, match=r"changes its logits by 3\.\de-01 of their size"):
        explain_sequences(model, ids, 5)


@pytest.mark.parametrize("name", BACKENDS)
def test_both_engines_explain_a_quantised_model_alike_and_leave_it_as_it_was(name, load):
    model, ids = load(BACKENDS[name]), padded_prompts((9,))["input_ids"]
    with torch.no_grad():
        before = model(ids).logits
    assert verify(model) < TOLERANCES.get(name, 1e-4)
    paper = explain_sequences(model, ids, 5, explain_config=GradELLMConfig.paper())
    assert paper.attributions.abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0.02 * before.abs().max().item())


@pytest.mark.parametrize("bits", [8, 4])
def test_hqq_by_its_own_library_is_explained_as_its_weights_say(bits, plain):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from hqq.models.hf.base import AutoHQQHFModel

    model, unquantised, ids = copy.deepcopy(plain), copy.deepcopy(plain), padded_prompts((9,))["input_ids"]
    config = BaseQuantizeConfig(nbits=bits, group_size=64)
    AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.float32, device="cpu")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, HQQLinear)}
    unquantised.load_state_dict({f"{name}.weight": layer.dequantize() for name, layer in layers.items()}, strict=False)
    out = explain_generate(model, ids, max_new_tokens=5)
    assert torch.equal(out.sequences, model.generate(ids, max_new_tokens=5))
    assert_same_heatmaps(out.attributions, explain_sequences(unquantised, out.sequences, 9).attributions)
    assert out.attributions.sub(explain_sequences(plain, out.sequences, 9).attributions).abs().max() > 1e-3
    assert verify(model) < 1e-4


@pytest.mark.parametrize(("bits", "file_format"), [(8, "int-quantized"), (4, "pack-quantized"), (8, "naive-quantized")])
def test_compressed_tensors_are_explained_as_their_weights_say(bits, file_format, plain, tmp_path):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from transformers import CompressedTensorsConfig

    save_compressed(copy.deepcopy(plain), bits, file_format, tmp_path)

    def load_compressed(**options):
        return AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options).eval()

    model, prompts = load_compressed(), padded_prompts()
    assert any(name.endswith("weight_scale") for name, _ in model.named_parameters())
    unquantised = load_compressed(quantization_config=CompressedTensorsConfig(dequantize=True))
    out = explain_generate(model, **prompts, max_new_tokens=5)
    mask = torch.cat([prompts["attention_mask"], out.step_mask.long()], dim=1)
    expected = explain_sequences(unquantised, out.sequences, out.prompt_length, mask)
    assert_same_heatmaps(out.attributions, expected.attributions)
    other = explain_sequences(plain, out.sequences, out.prompt_length, mask)
    assert out.attributions.sub(other.attributions).abs().max() > 1e-3
    assert verify(load_compressed()) < 1e-4


def save_compressed(model, bits, file_format, folder):
    """Saves a model with weights of so many bits, in float8 for "naive-quantized", as the llm-compressor does."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    is_float = file_format == "naive-quantized"
    groups = {"strategy": "channel"} if bits == 8 else {"strategy": "group", "group_size": 32}
    weights = QuantizationArgs(num_bits=bits, type="float" if is_float else "int", symmetric=True, **groups)
    scheme = {"all": QuantizationScheme(targets=["Linear"], weights=weights)}
    config = QuantizationConfig(config_groups=scheme, ignore=["lm_head"], format=file_format, quantization_status="frozen")
    apply_quantization_config(model, config)
    for layer in model.modules():
        if hasattr(layer, "weight_scale"):
            largest = layer.weight.reshape(len(layer.weight), layer.weight_scale.shape[1], -1).abs().amax(-1)
            layer.weight_scale.data = largest.detach() / (448 if is_float else 2 ** (bits - 1) - 1)
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=file_format)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


def test_kernels_without_a_backward_pass_are_refused_with_what_to_do(load, caplog):
    caplog.set_level(logging.CRITICAL)
    model, prompts = load(TorchAoConfig(Int8DynamicActivationInt8WeightConfig())), padded_prompts()
    with (
        pytest.warns(UserWarning, match="stepwise engine"),
        pytest.raises(
            UnsupportedArchitectureError, match=r"No gradient reaches the attention layers.*Load the model without it"
        ) as caught,
    ):
        explain_generate(model, **prompts, max_new_tokens=3)
    assert torch.equal(caught.value.generated.sequences, model.generate(**prompts, max_new_tokens=3))


def test_gguf_is_explained_as_the_dequantised_weights_that_transformers_makes_of_it(smollm2):
    """The real model of the tests is such a file, once loaded and kept as plain weights."""
    from gradellm_hf.demo_model import _gguf_file

    gguf = _gguf_file()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    assert not is_quantized(model)
    ids = smollm2[1]("Gold is a", return_tensors="pt")["input_ids"]
    out, expected = (explain_generate(m, ids, max_new_tokens=3, do_sample=False) for m in (model, smollm2[0]))
    assert torch.equal(out.sequences, expected.sequences)
    assert_same_heatmaps(out.attributions, expected.attributions)
