"""Models with random weights, made on the device from the shapes of real ones."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

#: Llama 2 7B; positions for the longest text here.
LLAMA_7B: dict[str, int] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 16384,
}
#: Qwen3-8B.
QWEN3_8B: dict[str, int] = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
#: Llama 3 70B, but for its number of layers (80).
LLAMA_70B_LAYERS: dict[str, int] = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}
#: Small, for exactness: grouped heads, and weights large enough for attention that is not uniform.
SMALL_LLAMA: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "initializer_range": 0.04,
}
#: For tests of this command.
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
#: No token ends a text or stands for padding: it is as long as it was asked to be.
NO_SPECIAL_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def llama(shape: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(**shape, **NO_SPECIAL_TOKENS)


def random_model(
    config: Any, device: torch.device | str, dtype: torch.dtype, attention: str = "sdpa", seed: int = 0
) -> PreTrainedModel:
    """A model with random weights, which are made on the device, in `dtype`."""
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention).eval()


def random_ids(config: Any, length: int, device: torch.device | str, seed: int = 0) -> Tensor:
    """Token ids, `[1, length]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (1, length), generator=generator).to(device)


def writing(num_steps: int) -> dict[str, Any]:
    """Options of `generate` for exactly so many new tokens."""
    return {"max_new_tokens": num_steps, "do_sample": False}
