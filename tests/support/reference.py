"""The slow truth: autograd over the full prefix, once for every step, with no cache and no code of the package.

Each generated token has a forward and a backward pass of its own, over everything before it. Attention is Transformers'
eager attention; queries, keys, values, attention weights and head outputs are recorded as it computes them.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Target = Callable[[Tensor, Tensor, int], Tensor]


@dataclass
class Call:
    """One call of the attention function, over the whole prefix."""

    query: Tensor  # [R, H, T, D]
    key: Tensor  # [R, G, T, D]
    value: Tensor  # [R, G, T, D]
    weights: Tensor  # [R, H, T, T]
    output: Tensor  # [R, T, H, D]


_calls: list[Call] = []


def _recorded_eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    eager = sys.modules[type(module).__module__].eager_attention_forward  # the family's own
    output, weights = eager(module, query, key, value, mask, **kwargs)
    _calls.append(Call(query, key, value, weights, output))
    return output, weights


ALL_ATTENTION_FUNCTIONS.register("recorded_eager", _recorded_eager)
ALL_MASK_ATTENTION_FUNCTIONS.register("recorded_eager", eager_mask)


def logit(logits: Tensor, chosen: Tensor, step: int) -> Tensor:
    """`logits [R, V]` of one step, `chosen [R]` -> the scalar of each row, `[R]`."""
    return torch.stack([logits[r, chosen[r]] for r in range(len(chosen))])


def reference_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A separately built model with the same weights and recorded eager attention."""
    config = copy.deepcopy(model.config)
    reference = type(model)._from_config(config, attn_implementation="recorded_eager").to(model.dtype).eval()
    reference.load_state_dict(model.state_dict())
    for own, original in zip(reference.buffers(), model.buffers(), strict=True):
        own.copy_(original)  # rotary frequencies are in no state dict
    return reference


def reference_heatmaps(
    model: PreTrainedModel,
    token_ids: Tensor,
    prompt_length: int,
    padding: Tensor | None = None,
    *,
    spatial: str = "attention",
    target: Target = logit,
    positive_heads: bool = False,
    magnitudes: bool = False,
    head_weights: Tensor | None = None,
) -> Tensor:
    """Heatmaps of every layer, `c_l[n, i] = sum_h w[p, h, i] <g[p, h], v[i, h]>`, `[R, L, N, S]`.

    Args:
        padding: 0 for padded prompt positions, `[R, P]`.
        positive_heads: Add up the positive part of each head only.
        magnitudes: Add up `w[p, h, i] ||g[p, h]|| ||v[i, h]||` instead.
        head_weights: Factors of the heads, `[L, H]`.
    """
    model = reference_copy(model)
    rows, length = token_ids.shape
    heatmaps = torch.zeros(rows, model.config.num_hidden_layers, length - prompt_length, length, dtype=model.dtype)
    for step, end in enumerate(range(prompt_length, length)):
        logits = _run(model, token_ids[:, :end], padding)
        calls = list(_calls)
        score = target(logits, token_ids[:, end], step).sum()
        gradients = torch.autograd.grad(score, [call.output for call in calls])
        for layer, (call, gradient) in enumerate(zip(calls, gradients, strict=True)):
            visible = visible_positions(model, layer, rows, end, padding)
            for row in range(rows):
                for head in range(call.query.shape[1]):
                    group = head // (call.query.shape[1] // call.key.shape[1])
                    if spatial == "attention":
                        weights = call.weights[row, head, -1]
                    else:
                        weights = minmax_cosine(call.query[row, head, -1], call.key[row, group], visible[row])
                    products = call.value[row, group] @ gradient[row, -1, head]
                    if magnitudes:
                        products = call.value[row, group].norm(dim=-1) * gradient[row, -1, head].norm()
                    contribution = (weights * products).detach()
                    if positive_heads:
                        contribution = contribution.clamp(min=0)
                    factor = 1 if head_weights is None else head_weights[layer, head].item()
                    heatmaps[row, layer, step, :end] += factor * contribution
    return heatmaps


def reference_flattened_heatmaps(
    model: PreTrainedModel,
    token_ids: Tensor,
    prompt_length: int,
    padding: Tensor | None = None,
    *,
    spatial: str = "loosened",
    target: Target = logit,
) -> Tensor:
    """The published definition, in every layer and signed, `[R, L, N, S]`: `c_l[n, i] = sum_c g_c w_i v_ic`.

    `g` is the gradient at the attention module's output at position `p`. `q`, `k` and `v` are what the projections put
    out, flattened over heads, before RoPE and norms of queries and keys; `k` and `v` are repeated whole until they are as
    wide as `q`. `w_i` is the min-max scaled cosine of `q[p]` and `k[i]`; with `spatial="attention"` a softmax of their
    product over the square root of the width. Both run over the keys that `p` sees.
    """
    model = reference_copy(model)
    rows, length = token_ids.shape
    modules = _attention_modules(model)
    heatmaps = torch.zeros(rows, len(modules), length - prompt_length, length, dtype=model.dtype)
    for step, end in enumerate(range(prompt_length, length)):
        projected: dict[nn.Module, Any] = {}

        def keep(module: nn.Module, args: Any, output: Any, projected: dict = projected) -> None:
            projected[module] = output

        handles = [
            module.register_forward_hook(keep) for attention in modules for module in (attention, *_projections(attention))
        ]
        logits = _run(model, token_ids[:, :end], padding)
        for handle in handles:
            handle.remove()
        score = target(logits, token_ids[:, end], step).sum()
        gradients = torch.autograd.grad(score, [projected[attention][0] for attention in modules])
        for layer, (attention, gradient) in enumerate(zip(modules, gradients, strict=True)):
            query, key, value = torch.cat([projected[p] for p in _projections(attention)], dim=-1).split(_widths(model), dim=-1)
            visible = visible_positions(model, layer, rows, end, padding)
            for row in range(rows):
                q = query[row, -1]
                repeats = len(q) // key.shape[-1]
                k, v = (torch.cat([x[row]] * repeats, dim=-1) for x in (key, value))
                if spatial == "loosened":
                    weights = minmax_cosine(q, k, visible[row])
                else:
                    scores = k @ q / len(q) ** 0.5
                    weights = torch.where(visible[row], scores, -torch.inf).softmax(-1)
                for i in range(end):
                    heatmaps[row, layer, step, i] = (gradient[row, -1] * weights[i] * v[i]).sum().detach()
    return heatmaps


def minmax_cosine(query: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
    """`[D]`, `[T, D]`, `[T]` -> `[T]`: cosines scaled so that they run from 0 to 1 over the visible keys; 0 elsewhere."""
    cosines = [torch.dot(query, key) / (query.norm() * key.norm()) for key in keys]
    seen = [cosine for cosine, is_visible in zip(cosines, visible, strict=True) if is_visible]
    lowest, highest = min(seen), max(seen)
    zero = torch.zeros_like(lowest)
    return torch.stack(
        [
            (cosine - lowest) / (highest - lowest) if is_visible and highest > lowest else zero
            for cosine, is_visible in zip(cosines, visible, strict=True)
        ]
    )


def visible_positions(model: PreTrainedModel, layer: int, rows: int, end: int, padding: Tensor | None) -> Tensor:
    """Which of the first `end` positions the last of them sees in a layer, bool `[R, end]`."""
    window = getattr(model.config, "sliding_window", None)
    layer_types = getattr(model.config, "layer_types", None)
    if layer_types is not None and layer_types[layer] == "full_attention":
        window = None
    visible = torch.ones(rows, end, dtype=torch.bool)
    if padding is not None:
        visible[:, : padding.shape[1]] = padding[:, :end] != 0
    if window is not None:
        visible[:, : max(0, end - window)] = False
    return visible


def _run(model: PreTrainedModel, token_ids: Tensor, padding: Tensor | None) -> Tensor:
    """Logits after the last token, `[R, V]`; fills `_calls`."""
    mask = torch.ones_like(token_ids)
    if padding is not None:
        mask[:, : padding.shape[1]] = padding
    _calls.clear()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    return model(input_ids=token_ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]


def _attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    if model.config.model_type == "gpt2":
        return [block.attn for block in model.transformer.h]
    return [layer.self_attn for layer in model.model.layers]


def _projections(attention: nn.Module) -> list[nn.Module]:
    return [attention.c_attn] if hasattr(attention, "c_attn") else [attention.q_proj, attention.k_proj, attention.v_proj]


def _widths(model: PreTrainedModel) -> list[int]:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return [config.num_attention_heads * head_dim, groups * head_dim, groups * head_dim]
