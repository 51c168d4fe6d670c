"""Tiny random models of each family, from configurations, in sizes that no two dimensions share by accident."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

WINDOW = 4


_COMMON = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_LLAMA_LIKE = {**_COMMON, "max_position_embeddings": 64, "tie_word_embeddings": False}
_MOE = {
    "experts_implementation": "eager",  # the others have no float64
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 18,
    "shared_expert_intermediate_size": 22,
}


def _sizes(vocabulary: int, width: int, heads: int, groups: int, head_dim: int | None, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": width + 7,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "num_hidden_layers": layers,
        **({} if head_dim is None else {"head_dim": head_dim}),
    }


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_sizes(53, 42, 6, 2, 10, 5), "attention_bias": True},
    "mistral": {"model_type": "mistral", **_sizes(47, 33, 7, 1, 6, 4), "sliding_window": None},
    "mistral_windowed": {"model_type": "mistral", **_sizes(47, 33, 7, 1, 6, 4), "sliding_window": WINDOW},
    "qwen2": {"model_type": "qwen2", **_sizes(59, 42, 7, 7, None, 4)},
    "qwen2_windowed": {
        "model_type": "qwen2",
        **_sizes(59, 60, 6, 3, None, 4),
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 2,  # layers 0 and 1 attend to everything, 2 and 3 through the window
    },
    "qwen3": {"model_type": "qwen3", **_sizes(61, 38, 9, 3, 12, 4)},
    "qwen2_moe": {"model_type": "qwen2_moe", **_sizes(43, 36, 6, 2, None, 3), **_MOE},
    "qwen3_moe": {"model_type": "qwen3_moe", **_sizes(67, 39, 10, 5, 8, 3), **_MOE, "mlp_only_layers": [1]},
    "gpt2": {"model_type": "gpt2", "vocab_size": 59, "n_embd": 35, "n_head": 7, "n_layer": 4, "n_positions": 64},
    # Without a declaration of its own; norms of queries and keys before the heads are split, norms after attention.
    "olmo2": {"model_type": "olmo2", **_sizes(41, 36, 6, 2, None, 3)},
    # H * D == E, as `channel="attention_output"` needs; if D is not given, it is E / H.
    "square_llama": {"model_type": "llama", **_sizes(53, 60, 6, 2, 10, 4)},
    "square_mistral_windowed": {"model_type": "mistral", **_sizes(47, 42, 7, 1, 6, 3), "sliding_window": WINDOW},
    "square_qwen3": {"model_type": "qwen3", **_sizes(61, 72, 6, 3, 12, 3)},
}


def tiny_model(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, attn_implementation: str = "sdpa", **overrides: Any
) -> PreTrainedModel:
    """A model of a family with seeded random weights, in evaluation mode.

    The weights are large enough that attention is far from uniform, and norms and biases are random too, so that leaving
    any of them out shows.

    Args:
        family: A name in `CONFIGURATIONS`.
        overrides: Configuration values to change.
    """
    defaults = _COMMON if family == "gpt2" else _LLAMA_LIKE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.for_model(**{**defaults, **CONFIGURATIONS[family], **overrides})
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(1.2 * noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
    return model.to(dtype).eval()


def random_text(
    model: PreTrainedModel, rows: int, prompt_length: int, num_steps: int, padding: list[int] | None = None, seed: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Random token ids `[R, P + N]` and the mask of the prompt `[R, P]`, with `padding[r]` padded positions on the left."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(model.config.vocab_size, (rows, prompt_length + num_steps), generator=generator)
    if padding is None:
        return token_ids, None
    mask = (torch.arange(prompt_length)[None] >= torch.tensor(padding)[:, None]).long()
    token_ids[:, :prompt_length].masked_fill_(mask == 0, 0)
    return token_ids, mask


class float64_islands(TorchFunctionMode):  # noqa: N801 - used like a function, as torch's own modes are
    """A context in which whatever asks for float32 gets float64.

    Transformers computes norms, rotary angles, router probabilities and eager softmax in float32 whatever the model's
    dtype. These islands would hide every error below 1e-7. The mode sees each call of a torch function, so it lifts them
    in every family, for the package and for the reference alike; the package's float32 results become float64 too.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(_widened(value) for value in args)
        return func(*args, **{name: _widened(value) for name, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
