"""A small language model as a hub repository brings it along, written against the public interfaces of Transformers.

Three ways to attend, by `config.attention`: `get_interface` and `index` look up the attention function as today's and as
earlier models of Transformers do; `own` computes it here, under a name of its own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.support.versions import CACHE


class RemoteConfig(PreTrainedConfig):
    model_type = "remote"

    attention: str = "get_interface"
    vocab_size: int = 43
    hidden_size: int = 30
    num_hidden_layers: int = 3
    num_attention_heads: int = 5
    num_key_value_heads: int = 5
    max_position_embeddings: int = 64
    #: Whether `own` hands out its attention weights, or forgets about those.
    returns_weights: bool = True
    #: A factor of the head outputs of `own`, after the weights have been applied.
    gate: float = 1.0
    output_projection: str = "out_proj"
    #: Whether a call leaves its keys and values for the next one, or each call reads the whole text.
    keeps_cache: bool = True


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


eager_attention_forward = eager_attention  # by which name models of Transformers call it


class RemoteAttention(nn.Module):
    is_causal = True

    def __init__(self, config: RemoteConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.add_module(config.output_projection, nn.Linear(config.hidden_size, config.hidden_size))

    def forward(self, hidden_states: Tensor, mask: Tensor, cache: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        rows, queries, width = hidden_states.shape
        heads = self.qkv(hidden_states).view(rows, queries, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = self.attention_function()
        output, weights = attend(self, query, key, value, mask, scaling=self.head_dim**-0.5, **kwargs)
        if self.config.attention == "own":
            output = output * self.config.gate
            weights = weights if self.config.returns_weights else None
        return self.get_submodule(self.config.output_projection)(output.reshape(rows, queries, width)), weights

    def attention_function(self) -> Any:
        name = self.config._attn_implementation
        if self.config.attention == "get_interface":
            return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        if self.config.attention == "index":
            return eager_attention_forward if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        return eager_attention


class RemoteLayer(nn.Module):
    def __init__(self, config: RemoteConfig, layer_idx: int):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(config.hidden_size), RemoteAttention(config, layer_idx)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.hidden_size),
            nn.Linear(config.hidden_size, 37),
            nn.GELU(),
            nn.Linear(37, config.hidden_size),
        )

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        output, weights = self.attention(self.norm(hidden_states), *args, **kwargs)
        hidden_states = hidden_states + output
        return hidden_states + self.feed_forward(hidden_states), weights


class RemoteForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = RemoteConfig
    base_model_prefix = "transformer"
    _supports_sdpa = True

    def __init__(self, config: RemoteConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(RemoteLayer(config, i) for i in range(config.num_hidden_layers))
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        cache_position: Tensor | None = None,
        use_cache: bool | None = True,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput | CausalLMOutputWithPast:
        if not self.config.keeps_cache:
            cache, use_cache = None, False
        if use_cache and cache is None:
            cache = DynamicCache()
        seen = cache.get_seq_length() if cache is not None else 0
        if cache_position is None:
            cache_position = torch.arange(seen, seen + input_ids.shape[1])
        assert cache_position.tolist() == list(range(seen, seen + input_ids.shape[1]))
        hidden_states = self.embeddings(input_ids)
        keys = torch.arange(seen + input_ids.shape[1])
        visible = (keys <= cache_position[:, None])[None, None]
        position_ids = cache_position[None]
        if attention_mask is not None:
            visible = visible & attention_mask[:, None, None, :].bool()
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, cache_position]
        mask = torch.zeros(visible.shape, dtype=hidden_states.dtype).masked_fill(~visible, torch.finfo(hidden_states.dtype).min)
        hidden_states = hidden_states + self.positions(position_ids)
        attentions = ()
        for block in self.blocks:
            hidden_states, weights = block(hidden_states, mask, cache)
            attentions += (weights,)
        returned = {"logits": self.head(hidden_states), "attentions": attentions if output_attentions else None}
        if not self.config.keeps_cache:
            return CausalLMOutput(**returned)
        return CausalLMOutputWithPast(**returned, **{CACHE: cache if use_cache else None})

    if CACHE == "cache":

        def forward(
            self,
            input_ids: Tensor,
            attention_mask: Tensor | None = None,
            cache: Any = None,
            cache_position: Tensor | None = None,
            return_dict: bool | None = None,
            **kwargs: Any,
        ) -> CausalLMOutput | CausalLMOutputWithPast:
            return self.read(input_ids, attention_mask, cache, cache_position, **kwargs)

    else:

        def forward(
            self,
            input_ids: Tensor,
            attention_mask: Tensor | None = None,
            past_key_values: Any = None,
            cache_position: Tensor | None = None,
            return_dict: bool | None = None,
            **kwargs: Any,
        ) -> CausalLMOutput | CausalLMOutputWithPast:
            return self.read(input_ids, attention_mask, past_key_values, cache_position, **kwargs)


RemoteForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # which is how Transformers knows code of a hub


def remote_model(attention: str, attn_implementation: str = "sdpa", **options: Any) -> RemoteForCausalLM:
    """With seeded random weights, in float64."""
    torch.manual_seed(0)
    config = RemoteConfig(attention=attention, **options)
    config._attn_implementation = attn_implementation
    model = RemoteForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape) + (parameter.ndim == 1))
    return model.double().eval()
