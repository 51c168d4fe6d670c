"""Tiny random models of any decoder-only type, by rules about the names of configuration fields."""

import re
import warnings
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.support.versions import config_fields

from .lifted_precision import lifted_precision

VOCABULARY = 97
WINDOW = 5

#: Field name -> value; the first match counts. A default that is smaller already stays.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(un\w+_)?vocab_size(_per_layer_input)?", VOCABULARY),
    (r"num_hidden_layers|n_layers?|num_layers|num_blocks|decoder_layers", 3),
    (r"\w*layer_offset|first_k_dense_replace|num_dense_layers|num_kv_shared_layers", 1),
    (r"topk_group|\w*shared_experts|hc_sinkhorn_iters", 1),
    (r"\w*experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|n_group|num_expert_group", 2),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts|zero_expert_num", 4),
    (r"\w*mamba\w*_heads", 8),
    (r"\w*(key_value|kv)_heads|kv_n_heads|linear_num_key_heads|n_groups|o_groups", 2),
    (r"\w*heads?", 4),
    (r"hidden_size|n_embd|d_model|emb_dim|embedding_dim|word_embed_proj_dim|lru_width", 32),
    (r"qk_rope_head_dim|rotary_dim", 4),
    (r"v_head_dim", 6),
    (r"\w*(head_?dim|d_head)|dim_head|kv_channels", 8),
    (r"kv_lora_rank", 10),
    (r"q_lora_rank", 12),
    (r"\w*(sliding_window|window_size|attention_chunk_size|local_attention)\w*", WINDOW),
    (r"\w*chunk_?size|block_size|index_block_size|index_topk|index_topk_blocks", 4),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length|\w*max_distance", 64),
    (r"\w*(period|interval|every_n_layers)|sliding_window_pattern", 2),
    (r"mamba_d_ssm", 64),
    (r"\w*intermediate_size\w*|n_inner|\w*ffn_dim|\w*ffn_hidden_size|dff|dim_ff|d_inner", 24),
    (r"\w*(state_size|d_state|_rank|lowrank|_dim|_size|extent|num_buckets|multiple_of)", 8),
    (r"d_rel|hidden_size_per_layer_input|query_pre_attn_scalar", 8),
)
#: Fields that default to None and that only a checkpoint's configuration fills in.
_FILLED_IN = re.compile(r"head_dim|num_experts_per_tok|num_key_value_heads|n_shared_experts|n_routed_experts")
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
#: Fields that stay equal where their defaults are equal.
_TIES = (("head_dim", "qk_rope_head_dim"), ("num_key_value_heads", "num_attention_heads"), ("kv_heads", "num_heads"))

_HYBRID = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_SHARED = ["linear_attention", "hybrid", "linear_attention", "hybrid"]

#: What the rules cannot know, by type, each with the reason.
_OVERRIDES: dict[str, dict[str, Any]] = {
    # The default configuration has no attention layer.
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": _HYBRID, "num_hidden_layers": 4},
    # The default configuration has attention layers only, and the type exists for the others.
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_hidden_layers": 4},
    # The default pattern ends in attention, and its recurrence matters where it comes after.
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "moe", "linear_attention", "full_attention", "mlp"],
        "num_hidden_layers": 6,
    },
    # The default configuration does not build a model: required, and None or absent.
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 24, "hidden_size": 32},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    # The attention module is shared by the hybrid layers, of which there must be two.
    "zamba": {"layers_block_type": _SHARED, "num_hidden_layers": 4, "use_mamba_kernels": False},
    "zamba2": {"layers_block_type": _SHARED, "num_hidden_layers": 4},
    # Layers before, in and after the loop add up to all three.
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1},
    # Sizes in dictionaries and keyword arguments, which are no fields.
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 3}},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 12,
        "swa_kv_lora_rank": 10,
        "swa_head_dim": 12,
        "swa_qk_nope_head_dim": 8,
        "swa_qk_rope_head_dim": 4,
        "swa_v_head_dim": 6,
        "sliding_window": WINDOW,
    },
    # The sparse attention is off unless all of these are given.
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 1,
    },
    # Earlier versions insist on kernels for CUDA.
    "jamba": {"use_mamba_kernels": False},
    # Widths that must multiply to another width, or are rounded up to multiples of 64.
    "mamba2": {"num_heads": 8},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0, "chunk_size": 16},
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The type's default configuration with every size reduced, and a layer of each of its kinds kept."""
    config_class = CONFIG_MAPPING[model_type]
    overrides = _OVERRIDES.get(model_type, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default = config_class()
        return config_class(**{**_small_values(default), **overrides})


def _small_values(default: PreTrainedConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"experts_implementation": "eager"}  # the others have no float64
    defaults = config_fields(type(default))
    for name, value in defaults.items():
        if name in SPECIAL_TOKENS:
            values[name] = None if value is None else SPECIAL_TOKENS[name]
        elif value is None and _FILLED_IN.fullmatch(name):
            values[name] = _small(name, 10**6)
        elif isinstance(value, int) and not isinstance(value, bool):
            values[name] = _small(name, value)
    for name, other in _TIES:
        if name in values and other in values and defaults[name] in (defaults[other], None) and defaults[other] is not None:
            values[name] = values[other]
    return values | _kept_layers(default)


def _small(name: str, value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    return min(value, next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), value))


def _kept_layers(default: PreTrainedConfig) -> dict[str, Any]:
    """The lists with one entry a layer, cut to a layer of each kind and the one after, and their common length."""
    fields = config_fields(type(default))
    depth = next((getattr(default, name) for name in ("num_hidden_layers", "num_layers") if name in fields), None)
    lists = {
        name: value
        for name, value in vars(default).items()
        if name in fields and isinstance(value, list | tuple) and len(value) == depth and len(set(value)) < depth
    }
    if not lists:
        return {}
    kinds = list(zip(*lists.values(), strict=True))
    layers = {kinds.index(kind) for kind in kinds}
    layers.add(min(max(layers) + 1, depth - 1))  # so that the last new kind has something above it
    layers |= set([layer for layer in range(depth) if layer not in layers][: max(0, 3 - len(layers))])
    cut = {name: type(value)(_small(name, value[layer]) for layer in sorted(layers)) for name, value in lists.items()}
    return {**cut, "num_hidden_layers": len(layers)}


def tiny_model(model_type: str, attn_implementation: str | None = None, seed: int = 0) -> PreTrainedModel:
    """A model in float64 with seeded random weights, large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    with warnings.catch_warnings(), lifted_precision():  # rotary frequencies in float64 too
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(tiny_config(model_type), attn_implementation=attn_implementation)
    _to_float64(model)
    _randomize(model, seed)
    return model.eval()


def _to_float64(model: nn.Module) -> None:
    """As `model.to(torch.float64)`, which would also drop the imaginary part of complex rotary tables."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.double()
        elif tensor.is_complex():
            tensor.data = tensor.data.to(torch.complex128)


def _randomize(model: nn.Module, seed: int) -> None:
    """Random norms and biases too, so that leaving any of them out shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if parameter.ndim > 1:
                parameter.copy_(1.2 * noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
