"""The declarations in `model_patches` against the models they describe."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from gradellm_hf import GradELLMConfig, UnsupportedArchitectureError, explain_sequences
from gradellm_hf.architecture.facts import look_at
from model_patches import ArchitectureAdapter, find_adapter, register_adapter, registered_adapters
from model_patches import registry as adapter_registry
from model_patches.generic import GENERIC
from tests.support.architectures.tiny_configs import tiny_config
from tests.support.reference import reference_flattened_heatmaps
from tests.support.tiny_models import CONFIGURATIONS, float64_islands, random_text, tiny_model
from tests.support.versions import needs_type

DECLARED = ("llama", "mistral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gpt2")


@pytest.fixture
def restored_registry(monkeypatch):
    """Registrations made in the test are undone."""
    monkeypatch.setattr(adapter_registry, "_by_hand", dict(adapter_registry._by_hand))


@pytest.mark.parametrize("family", DECLARED)
def test_the_declared_attention_modules_are_those_that_call_the_attention_function(family):
    model = tiny_model(family, dtype=torch.float32)
    declared = find_adapter(model).attention_modules(model)
    assert len(declared) == model.config.num_hidden_layers
    assert all(a is b for a, b in zip(declared, look_at(model).attention, strict=True))


@pytest.mark.parametrize("family", DECLARED)
def test_every_declared_family_has_an_adapter_of_its_own(family):
    assert CONFIGURATIONS[family]["model_type"] in registered_adapters()


@pytest.mark.parametrize("family", DECLARED)
def test_the_declared_projections_put_out_query_key_and_value_of_their_widths(family):
    model = tiny_model(family, dtype=torch.float32)
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    adapter = find_adapter(model)
    seen = {}
    for attention in adapter.attention_modules(model):
        for projection, by_name in adapter.projections(attention):
            projection.register_forward_hook(lambda m, args, output, by_name=by_name: seen.update(by_name(output)))
        output_projection = getattr(attention, adapter.output_projection)
        output_projection.register_forward_pre_hook(lambda m, args: seen.update(heads=args[0]))
        output_projection.register_forward_hook(lambda m, args, output: seen.update(output=output))
        seen.clear()
        model(torch.arange(4)[None])
        assert {name: x.shape[-1] for name, x in seen.items()} == {
            "query": config.num_attention_heads * head_dim,
            "key": key_heads * head_dim,
            "value": key_heads * head_dim,
            "heads": config.num_attention_heads * head_dim,
            "output": config.hidden_size,
        }


def test_the_fused_projection_of_gpt2_is_split_as_the_model_splits_it():
    model = tiny_model("gpt2", dtype=torch.float32)
    adapter = find_adapter(model)
    attention = adapter.attention_modules(model)[0]
    ((projection, by_name),) = adapter.projections(attention)
    states = torch.randn(2, 5, model.config.n_embd, generator=torch.Generator().manual_seed(0))
    parts = by_name(projection(states))
    for name, part in zip(("query", "key", "value"), projection(states).split(attention.split_size, dim=2), strict=True):
        assert torch.equal(parts[name], part)


def test_a_family_without_a_declaration_gets_the_generic_adapter_and_is_explained():
    model = tiny_model("square_llama", model_type="arcee")
    assert "arcee" not in registered_adapters()
    assert find_adapter(model).model_types == ()
    assert all(a is b for a, b in zip(find_adapter(model).attention_modules(model), look_at(model).attention, strict=True))
    token_ids, _ = random_text(model, 1, 6, 3)
    with float64_islands():
        out = explain_sequences(model, token_ids, 6, explain_config=GradELLMConfig.paper(positive_only=False))
        expected = reference_flattened_heatmaps(model, token_ids, 6)[:, -1]
    torch.testing.assert_close(out.attributions, expected, rtol=1e-9, atol=1e-9)


def test_a_part_that_is_not_there_is_named_with_the_path_and_how_far_it_was_found():
    model = tiny_model("llama", dtype=torch.float32)
    adapter = ArchitectureAdapter(model_types=("llama",), decoder_layers="model.decoder.blocks")
    with pytest.raises(AttributeError) as caught:
        adapter.layers(model)
    message = str(caught.value)
    assert "LlamaModel has no `decoder`" in message
    assert "looked for `model.decoder.blocks`, got as far as `model`" in message
    assert "Register an ArchitectureAdapter" in message
    with pytest.raises(AttributeError, match="LlamaAttention has no `query_proj`"):
        dataclasses.replace(adapter, query="query_proj").projections(model.model.layers[0].self_attn)


def test_the_generic_adapter_says_what_it_did_not_find():
    model = tiny_model("llama", dtype=torch.float32)
    layers = model.model.layers
    for layer in layers:
        del layer.self_attn.o_proj
    with pytest.raises(AttributeError, match=r"no modules named attention with an output projection \(o_proj, .*Register an"):
        GENERIC.attention_modules(model)
    model.model.layers = layers[:-1]
    with pytest.raises(AttributeError, match=rf"LlamaForCausalLM has no list of {len(layers)} decoder layers. Register an"):
        GENERIC.attention_modules(model)


def test_a_wrong_declaration_is_an_unsupported_architecture_that_names_what_was_looked_for(restored_registry):
    model = tiny_model("square_llama", dtype=torch.float32)
    register_adapter(ArchitectureAdapter(model_types=("llama",), key="k_projection"))
    token_ids, _ = random_text(model, 1, 5, 2)
    with pytest.raises(UnsupportedArchitectureError, match="LlamaAttention has no `k_projection`"):
        explain_sequences(model, token_ids, 5, explain_config=GradELLMConfig.paper())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_registered_adapter_wins_over_the_built_in_one(restored_registry):
    model = tiny_model("square_llama", dtype=torch.float32)
    token_ids, _ = random_text(model, 1, 6, 3)
    config = GradELLMConfig.paper()
    expected = explain_sequences(model, token_ids, 6, explain_config=config).attributions
    adapter = ArchitectureAdapter(model_types=("llama",), key="other_name")
    register_adapter(adapter)
    assert find_adapter(model) is adapter
    for layer in model.model.layers:
        layer.self_attn.other_name = layer.self_attn.k_proj
    torch.testing.assert_close(explain_sequences(model, token_ids, 6, explain_config=config).attributions, expected)
    swapped = ArchitectureAdapter(model_types=("llama",), key="v_proj", value="k_proj")
    register_adapter(swapped)
    assert not torch.allclose(explain_sequences(model, token_ids, 6, explain_config=config).attributions, expected)


def test_half_a_fused_declaration_is_refused():
    with pytest.raises(ValueError, match="`fused` and `split_fused` belong together, got fused='qkv' and split_fused=None"):
        ArchitectureAdapter(model_types=("llama",), fused="qkv")


def test_only_adapters_can_be_registered():
    with pytest.raises(TypeError, match="Expected an ArchitectureAdapter, got dict"):
        register_adapter({"model_types": ("llama",)})


IMAGE_TEXT_TYPES = [
    ("gemma3", "gemma3_text"),
    ("gemma3n", "gemma3n_text"),
    ("gemma4", "gemma4_text"),
    ("idefics3", "llama"),
    ("internvl", "qwen2"),
    ("llava", "llama"),
    ("mistral3", "mistral"),
    ("paligemma", "gemma"),
    ("qwen2_vl", "qwen2_vl_text"),
    ("qwen2_5_vl", "qwen2_5_vl_text"),
    ("qwen3_vl", "qwen3_vl_text"),
    ("qwen3_vl_moe", "qwen3_vl_moe_text"),
    ("smolvlm", "llama"),
]


def full_size_model(config: PreTrainedConfig) -> PreTrainedModel:
    """At its published size, without memory for its weights."""
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except ImportError as error:
        pytest.skip(f"its vision part needs what is not installed: {' '.join(str(error).split())}")


@pytest.mark.parametrize(("model_type", "text_type"), IMAGE_TEXT_TYPES)
def test_an_image_text_model_gets_the_adapter_of_its_text_decoder_with_the_layers_found_inside(model_type, text_type):
    needs_type(model_type)
    config = CONFIG_MAPPING[model_type]()
    config.get_text_config(decoder=True).pad_token_id = None  # 5.0 has none here, or one outside of the vocabulary
    model = full_size_model(config)
    adapter, text_adapter = find_adapter(model), registered_adapters()[text_type]
    assert adapter == dataclasses.replace(text_adapter, decoder_layers=adapter.decoder_layers)
    declared = adapter.attention_modules(model)
    decoder = set(model.get_decoder().modules())
    assert len(declared) == model.config.get_text_config(decoder=True).num_hidden_layers
    assert decoder.issuperset(declared)
    for attention in declared:
        assert adapter.output_projection_of(attention) in decoder
        if not getattr(attention, "is_kv_shared_layer", False):
            assert [module in decoder for module, _ in adapter.projections(attention)] == [True] * 3


def test_an_image_text_model_with_a_fused_projection_in_its_decoder_is_split_as_that_decoder_is():
    config = CONFIG_MAPPING["llava"](text_config=tiny_config("phi3"))
    model = full_size_model(config)
    adapter = find_adapter(model)
    assert adapter.split_fused is registered_adapters()["phi3"].split_fused
    assert adapter.attention_modules(model) == [layer.self_attn for layer in model.model.language_model.layers]


def test_an_image_text_model_without_a_declared_decoder_is_searched_for_layers_in_its_decoder_first():
    config = CONFIG_MAPPING["llava"](text_config=tiny_config("arcee"))
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers
    model = full_size_model(config)
    assert find_adapter(model) is GENERIC
    assert GENERIC.attention_modules(model) == [layer.self_attn for layer in model.model.language_model.layers]
