"""Position-local attention, and how it takes the place of a model's own without touching the model's code.

A causal model's output at position `p` depends on a head output `z[p]` only along paths that stay at `p`: keys and
values of other positions are constants for it. So attention that lets gradients through to a query's own key and value,
and to no other, makes one backward pass of the sum of all targets give `d f_n / d z[p]` of every step exactly.

`PositionLocalAttention` has the model's attention as its value and that derivative as its gradient. Its backward pass
needs `A * <dz, v>` anyway, and the sum of this over heads is the Grad-ELLM heatmap of the layer: the heatmap falls out
of the backward pass, and nothing of it has to be kept or computed twice.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UnsupportedArchitectureError
from .formula import (
    attention_weights,
    causal_visibility,
    group_heads,
    group_mask,
    grouped_products,
    loosened_weights,
)

_HARMLESS_KEYWORDS = {
    "cache_position",
    "dropout",
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
_BLOCK_ELEMENTS = 8 * 2**20  # scores held at once while a layer is differentiated: 32 MiB a temporary in float32


@dataclass(frozen=True)
class AttentionOptions:
    """What one call puts into the softmax besides queries and keys.

    Attributes:
        mask: Bool (True where visible) or additive, `[R or 1, H or 1, N, T]`.
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
        cls, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, keywords: dict
    ) -> "AttentionOptions":
        """Reads the arguments with which a model calls its attention function.

        Raises:
            UnsupportedArchitectureError: There is an argument that this package does not understand.
        """
        keywords = {name: value for name, value in keywords.items() if value is not None}
        softcap = keywords.pop("softcap", None)
        sinks = keywords.pop("s_aux", None)
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
        return cls(mask[..., :num_keys], query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, sinks)

    def scores(self, products: Tensor) -> Tensor:
        scores = products * self.scaling
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def score_derivative(self, scores: Tensor) -> Tensor | float:
        """`d scores / d products`, given the scores."""
        return self.scaling if self.softcap is None else self.scaling * (1 - (scores / self.softcap) ** 2)

    def weights(self, scores: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Attention weights `[R, G, M, n, T]` of the queries `first:last`."""
        groups = scores.shape[1]
        sinks = None if self.sinks is None else self.sinks.reshape(groups, -1)
        return attention_weights(scores, self.grouped_mask(groups, first, last), sinks)

    def grouped_mask(self, groups: int, first: int = 0, last: int | None = None) -> Tensor:
        return group_mask(self.mask[:, :, first:last], groups)


def attention_output(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
    """The value of attention, `[R, H, N, Dv]`. Queries that share a key/value head are stacked instead of repeating it."""
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


class PositionLocalAttention(torch.autograd.Function):
    """Attention whose gradient reaches a query's own key and value only; computes the layer's heatmap on the way back.

    Inputs: `anchor` (a leaf that makes autograd come here), `query [R, H, N, D]`, `key [R, G, T, D]`,
    `value [R, G, T, Dv]`, the options, the kind of spatial importance, and `record`, called in the backward pass with the
    signed heatmap `c[n, i] = sum_h w[p, h, i] <d f_n / d z[p, h], v[i, h]>` of shape `[R, N, T]` (None: not explained).
    """

    @staticmethod
    def forward(ctx, anchor, query, key, value, options, spatial, record):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(query, key, value)
        ctx.options, ctx.spatial, ctx.record = options, spatial, record
        return attention_output(query, key, value, options)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        query, key, value = ctx.saved_tensors
        precision = torch.promote_types(query.dtype, torch.float32)
        groups, (rows, heads, queries, _), keys = key.shape[1], query.shape, key.shape[2]
        q, g = (group_heads(x, groups).to(precision) for x in (query, gradient))
        k, v = key.to(precision), value.to(precision)
        needs_inputs = any(ctx.needs_input_grad[1:4])
        block = max(1, _BLOCK_ELEMENTS // (rows * heads * keys))
        heatmaps, input_gradients = [], []
        for first in range(0, queries, block):
            last = min(first + block, queries)
            heatmap, *gradients = _differentiate_block(
                ctx, q[..., first:last, :], k, v, g[..., first:last, :], first, last, keys - queries, needs_inputs
            )
            heatmaps.append(heatmap)
            input_gradients.append(gradients)
        if ctx.record is not None:
            ctx.record(torch.cat(heatmaps, dim=1))
        if not needs_inputs:
            return None, None, None, None, None, None, None
        d_query, d_own_key, d_own_value = (torch.cat(parts, dim=-2) for parts in zip(*input_gradients, strict=True))
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        d_key[:, :, keys - queries :] = d_own_key
        d_value[:, :, keys - queries :] = d_own_value
        return None, d_query.flatten(1, 2).to(query.dtype), d_key, d_value, None, None, None


def _differentiate_block(
    ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, first: int, last: int, offset: int, needs_inputs: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Heatmap `[R, n, T]` and gradients of query, own key and own value (each `[R, G, ..., n, D]`) of `n` queries."""
    options, groups = ctx.options, k.shape[1]
    products = grouped_products(q, k)
    scores = options.scores(products)
    weights = options.weights(scores, first, last)
    contributions = grouped_products(g, v)
    weighted = weights * contributions
    heatmap = None
    if ctx.record is not None and ctx.spatial == "attention":
        heatmap = weighted.sum((1, 2))
    elif ctx.record is not None:
        mask = options.grouped_mask(groups, first, last)
        heatmap = (loosened_weights(products, q, k[:, :, None], mask) * contributions).sum((1, 2))
    if not needs_inputs:
        return heatmap, None, None, None
    d_products = torch.addcmul(weighted, weights, weighted.sum(-1, keepdim=True), value=-1)
    d_products *= options.score_derivative(scores)
    d_query = (d_products.flatten(2, 3) @ k).view_as(q)
    d_own_products = d_products.diagonal(offset + first, -2, -1)
    own_weights = weights.diagonal(offset + first, -2, -1)
    d_own_key = (d_own_products[..., None] * q).sum(2)
    d_own_value = (own_weights[..., None] * g).sum(2)
    return heatmap, d_query, d_own_key, d_own_value


_handler: ContextVar[Callable | None] = ContextVar("gradellm_attention_handler", default=None)
_lock = threading.Lock()
_users = 0


@contextmanager
def attention_handler(handler: Callable) -> Iterator[None]:
    """While open, attention calls of this thread go to `handler(model's own function, module, query, key, ...)`.

    The one seam is `AttentionInterface.get_interface`, through which every Transformers model looks up its attention
    function by name. It keeps returning the model's own function to everybody else: other threads, other contexts. Masks
    and everything else that depends on the name of the implementation stay what they are in a normal forward.
    """
    token = _handler.set(handler)
    _install()
    try:
        yield
    finally:
        _uninstall()
        _handler.reset(token)


def _install() -> None:
    global _users
    from transformers.modeling_utils import AttentionInterface

    with _lock:
        if _users == 0:
            AttentionInterface.get_interface = _with_handler(AttentionInterface.get_interface)  # type: ignore[method-assign]
        _users += 1


def _uninstall() -> None:
    global _users
    from transformers.modeling_utils import AttentionInterface

    with _lock:
        _users -= 1
        if _users == 0:
            AttentionInterface.get_interface = AttentionInterface.get_interface.__wrapped__  # type: ignore[method-assign, attr-defined]


def _with_handler(get_interface: Callable) -> Callable:
    @functools.wraps(get_interface)
    def get_handled_interface(self: Any, attn_implementation: str, default: Callable) -> Callable:
        function = get_interface(self, attn_implementation, default)
        handler = _handler.get()
        return function if handler is None else functools.partial(handler, function)

    return get_handled_interface
