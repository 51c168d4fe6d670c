"""Tandem: Llama with an attention module of its own."""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

#: The names that Llama gives to the same parts.
LLAMA_NAMES = {"ask": "q_proj", "label": "k_proj", "content": "v_proj", "merge": "o_proj"}


class TandemConfig(LlamaConfig):
    model_type = "tandem"


class TandemAttention(nn.Module):
    def __init__(self, config: TandemConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.is_causal = True
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.ask = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim, bias=False)
        self.label = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.content = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.merge = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        projected = (part(hidden_states) for part in (self.ask, self.label, self.content))
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in projected)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.head_dim**-0.5, **kwargs)
        return self.merge(output.flatten(2)), weights


class TandemForCausalLM(LlamaForCausalLM):
    config_class = TandemConfig

    def __init__(self, config: TandemConfig):
        super().__init__(config)
        for layer_idx, layer in enumerate(self.model.layers):
            layer.self_attn = TandemAttention(config, layer_idx)


AutoConfig.register("tandem", TandemConfig)
AutoModelForCausalLM.register(TandemConfig, TandemForCausalLM)
