"""Position-local attention: the values of the model's attention, with gradients that stay at each query's own position.

In a causal model, the output at position `p` depends on a head output `z[p]` only along paths that stay at `p`: keys and
values of other positions are constants for it. So let attention pass gradients to a query's own key and value, and to no
others. Then one backward pass from the sum of all targets gives `d f_n / d z[p]` of every step exactly.

`PositionLocalAttention` has the values of the model's attention and that gradient. Its backward pass needs `A * <dz, v>`
anyway, and the sum of this over heads is the Grad-ELLM heatmap of the layer. So the backward pass gives the heatmap, and
nothing is kept or computed twice for it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .blocks import blocks, most_queries, query_blocks, span
from .formula import (
    HeadFormula,
    attention_weights,
    causal_visibility,
    group_heads,
    group_mask,
    grouped_products,
    loosened_weights,
    visible_keys,
)

_HARMLESS_KEYWORDS = {
    "block_indices",  # of sparse attention: with "sdpa" and "eager" the selection is in the mask already
    "cache_position",
    "dropout",
    "indices",  # the same
    "is_causal",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "sliding_window",
    "use_cache",
}
_ALL = slice(None)


@dataclass(frozen=True)
class AttentionOptions:
    """What one call puts into the softmax besides queries and keys.

    Attributes:
        mask: Bool (True for visible keys) or additive, `[R or 1, H or 1, N, T]`. An additive one may have gradients: in a
            query's own column, and in every column if they are of a position bias, which depends on the query alone.
        scaling: Factor of the products of queries and keys.
        softcap: `scores = softcap * tanh(scores / softcap)`, or None.
        sinks: Scores of the attention sinks, `[H]`, or None.
    """

    mask: Tensor
    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None

    @classmethod
    def from_call(
        cls, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, keywords: dict[str, Any]
    ) -> "AttentionOptions":
        """Reads the arguments with which a model calls its attention function.

        Raises:
            UnsupportedArchitectureError: There is an argument that this package does not understand.
        """
        keywords = {name: value for name, value in keywords.items() if value is not None}
        softcap = keywords.pop("softcap", None)
        sinks = keywords.pop("s_aux", None)
        position_bias = keywords.pop("position_bias", None)
        is_causal = keywords.get("is_causal", getattr(module, "is_causal", True))
        if unknown := sorted(set(keywords) - _HARMLESS_KEYWORDS):
            raise UnsupportedArchitectureError(
                f"{type(module).__name__} calls its attention function with {unknown}, which may change the attention "
                'scores in a way that is not known here. Use `GradELLMConfig(engine="stepwise")` with the model loaded '
                'with `attn_implementation="eager"`.'
            )
        num_queries, num_keys = query.shape[2], key.shape[2]
        if mask is None:
            if not is_causal and num_queries > 1:
                raise UnsupportedArchitectureError(
                    f"{type(module).__name__} attends in both directions; only causal self-attention can be explained."
                )
            mask = causal_visibility(num_queries, num_keys, query.device)
        elif not isinstance(mask, Tensor) or mask.ndim != 4:
            got = f"shape {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise UnsupportedArchitectureError(
                f"{type(module).__name__} passes its attention function a mask of another form than [R, H, N, T] ({got}). "
                'Load the model with `attn_implementation="sdpa"`.'
            )
        mask = own_column_gradient(mask[..., :num_keys])
        if position_bias is not None:
            mask = add_position_bias(mask, position_bias[..., :num_keys])
        return cls(mask, query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, sinks)

    def scores(self, products: Tensor) -> Tensor:
        return self.capped(products * self.scaling)

    def capped(self, products: Tensor) -> Tensor:
        """The scores of scaled products."""
        return products if self.softcap is None else self.softcap * torch.tanh(products / self.softcap)

    def capped_derivative(self, scores: Tensor) -> Tensor | float:
        """`d scores / d products` of scaled products, given the scores."""
        return 1 - (scores / self.softcap) ** 2 if self.softcap is not None else 1.0

    def weights(self, scores: Tensor) -> Tensor:
        """Attention weights `[R, G, M, N, T]`. The scores are overwritten."""
        groups = scores.shape[1]
        sinks = None if self.sinks is None else self.sinks.reshape(groups, -1)
        return attention_weights(scores, group_mask(self.mask, groups), sinks)

    def part(self, queries: slice, keys: slice = _ALL, rows: slice = _ALL, heads: slice = _ALL) -> "AttentionOptions":
        """The same for some queries, keys, rows and query heads."""
        mask = self.mask[rows if self.mask.shape[0] > 1 else _ALL, heads if self.mask.shape[1] > 1 else _ALL, queries, keys]
        return replace(self, mask=mask, sinks=None if self.sinks is None else self.sinks[heads])

    @property
    def first_seen(self) -> int:
        """A number of keys from the first on that no query sees: all of them, but 0 on devices that would be waited for."""
        if self.mask.device.type != "cpu":
            return 0
        return int(span(visible_keys(self.mask).flatten(0, -2).any(0)).start)


def attention_output(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
    """The head outputs, `[R, H, N, Dv]`. Queries that share a key/value head are stacked, so that it is not repeated."""
    outputs = [
        _attention_output(query[:, :, queries], key[:, :, keys], value[:, :, keys], options.part(queries, keys))
        for queries, keys in query_blocks(query.shape[2], key.shape[2], most_queries(query.device))
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _attention_output(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
    groups, (rows, heads, queries, _) = key.shape[1], query.shape
    grouped = group_heads(query, groups)
    if options.softcap is not None or options.sinks is not None:
        weights = options.weights(options.scores(grouped_products(grouped, key)))
        output = weights.to(value.dtype).flatten(2, 3) @ value
    else:
        mask = options.mask
        mask = mask.repeat(1, 1, heads // groups, 1) if mask.shape[1] == 1 else group_heads(mask, groups).flatten(2, 3)
        output = F.scaled_dot_product_attention(grouped.flatten(2, 3), key, value, attn_mask=mask, scale=options.scaling)
    return output.view(rows, heads, queries, value.shape[-1])


def own_column_gradient(mask: Tensor) -> Tensor:
    """Stops the gradient of an additive mask `[R, H, N, T]` everywhere but at each query's own key.

    A mask may be computed from the values (Doge does so). What comes from other positions is a constant.
    """
    if not mask.requires_grad:
        return mask
    offset = mask.shape[-1] - mask.shape[-2]
    return torch.diagonal_scatter(mask.detach(), mask.diagonal(offset, -2, -1), offset, -2, -1)


def add_position_bias(mask: Tensor, position_bias: Tensor) -> Tensor:
    """One additive mask of a mask and a bias `[R, H, N, T]`, as the models' own attention functions combine them."""
    if mask.dtype == torch.bool:
        return torch.where(mask, position_bias, torch.finfo(position_bias.dtype).min)
    return mask + position_bias


class PositionLocalAttention(torch.autograd.Function):
    """Attention whose gradient reaches a query's own key and value only. Its backward pass computes the layer's heatmap.

    Inputs: `anchor`, a leaf because of which autograd comes here; `query [R, H, N, D]`; `key [R, G, T, D]`;
    `value [R, G, T, Dv]`; the mask and all options; the formula of the heatmap; and `record`. The backward pass calls `record`
    with the heatmap `[R, N, T]`, which the formula makes of `w[p, h, i]`, `d f_n / d z[p, h]` and `v[i, h]`. Both are None for
    layers that are not explained.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        options: AttentionOptions,
        formula: HeadFormula | None,
        record: Callable[[Tensor], None] | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.options = options = replace(options, mask=mask.detach())
        ctx.formula, ctx.record = formula, record
        return attention_output(query, key, value, options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        options, record, mask = ctx.options, ctx.record, ctx.options.mask
        groups, (rows, heads, queries, _), keys = key.shape[1], query.shape, key.shape[2]
        shared, before = heads // groups, keys - queries
        precision = torch.promote_types(query.dtype, torch.float32)
        q_all, g_all = (group_heads(x, groups).to(precision) for x in (query, gradient))
        q_all, k_all, v_all = q_all * options.scaling, key.to(precision), value.to(precision)
        heatmap = k_all.new_zeros(rows, queries, keys) if record else None
        needs_inputs = any(ctx.needs_input_grad[1:5])
        d_inputs = [torch.zeros_like(x) for x in (q_all, key, value)] if needs_inputs else None
        d_mask = torch.zeros_like(mask) if ctx.needs_input_grad[4] else None

        for block in blocks(rows, groups, shared, queries, keys, query.device):
            own = slice(before + block.queries.start, before + block.queries.stop)
            here = options.part(block.queries, block.keys, block.rows, block.heads(shared))
            if first_seen := min(here.first_seen, own.start):
                block = replace(block, keys=slice(first_seen, block.keys.stop))
                here = here.part(_ALL, block.keys)
            of_queries = (block.rows, block.groups, _ALL, block.queries)
            of_keys, of_own = (block.rows, block.groups, block.keys), (block.rows, block.groups, own)
            q, g, k, v = q_all[of_queries], g_all[of_queries], k_all[of_keys], v_all[of_keys]
            products = grouped_products(q, k)
            contributions = grouped_products(g, v)
            loosened = None
            if heatmap is not None and ctx.formula.spatial == "loosened":
                loosened = loosened_weights(products, q, k[:, :, None], group_mask(here.mask, q.shape[1]))
                summed = ctx.formula.sum_heads(loosened, loosened * contributions, g, v, block)
                heatmap[block.rows, block.queries, block.keys] += summed
                if d_inputs is None:
                    continue
            scores = here.capped(products)
            derivative = here.capped_derivative(scores)
            weights = here.weights(scores)
            weighted = contributions.mul_(weights)
            if heatmap is not None and loosened is None:
                summed = ctx.formula.sum_heads(weights, weighted, g, v, block)
                heatmap[block.rows, block.queries, block.keys] += summed
            if d_inputs is None:
                continue
            d_query, d_key, d_value = d_inputs
            d_scores = weighted.addcmul_(weights, weighted.sum(-1, keepdim=True), value=-1)
            if d_mask is not None:
                d_part = replace(options, mask=d_mask).part(block.queries, block.keys, block.rows, block.heads(shared)).mask
                d_part += d_scores.flatten(1, 2).sum_to_size(d_part.shape)
            d_products = d_scores if here.softcap is None else d_scores.mul_(derivative)
            d_query[of_queries] = (d_products.flatten(2, 3) @ k).view_as(q)
            first_own = own.start - block.keys.start
            d_key[of_own] = (d_products.diagonal(first_own, -2, -1)[..., None] * q).sum(2)
            d_value[of_own] = (weights.diagonal(first_own, -2, -1)[..., None] * g).sum(2)
        if heatmap is not None:
            record(heatmap)
        if d_inputs is None:
            return (None,) * 8
        d_query, d_key, d_value = d_inputs
        d_query = d_query.mul_(options.scaling).flatten(1, 2)
        return None, d_query.to(query.dtype), d_key, d_value, d_mask, None, None, None


def position_local_attention(
    anchor: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: AttentionOptions,
    formula: HeadFormula | None,
    record: Callable[[Tensor], None] | None,
) -> Tensor:
    """`PositionLocalAttention` of its inputs; the mask is that of the options."""
    apply: Callable[..., Tensor] = PositionLocalAttention.apply  # torch declares no types for it
    return apply(anchor, query, key, value, options.mask, options, formula, record)
