"""The mathematics of Grad-ELLM: tensors in, tensors out.

Source: Huang & Chan, "Grad-ELLM: Gradient-based Explanations for Decoder-only LLMs", arXiv 2601.03089.

Shape letters, here and in the engines: R rows, L layers, G key/value heads, M query heads that share one of them
(so H = G * M query heads), N queries (steps), T keys visible to the last query, S = positions of the whole sequence,
D head dim, C channels. The last query's own key is the last key: query n owns key T - N + n.
"""

from dataclasses import dataclass

import torch

from ..architecture.tolerances import HEAD_OUTPUTS
from ..configuration import GradELLMConfig
from .blocks import Block, span

_ALL = slice(None)


def group_heads(x_RHND: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Query heads grouped by the key/value head that they share: `[R, H, N, D] -> [R, G, M, N, D]`."""
    rows, heads, queries, dim = x_RHND.shape
    return x_RHND.reshape(rows, num_groups, heads // num_groups, queries, dim)


def grouped_products(x_RGMND: torch.Tensor, y_RGTD: torch.Tensor) -> torch.Tensor:
    """Inner products of every query with every key of its group, `[R, G, M, N, T]`, without repeating keys."""
    rows, groups, shared, queries, dim = x_RGMND.shape
    products = x_RGMND.reshape(rows, groups, shared * queries, dim) @ y_RGTD.mT
    return products.view(rows, groups, shared, queries, -1)


def causal_visibility(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """Bool `[1, 1, N, T]`: the last query sees every key, the one before all but the last, and so on."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)[None, None]


def group_mask(mask_RHNT: torch.Tensor, num_groups: int) -> torch.Tensor:
    """A mask `[R or 1, H or 1, N, T]` so that it broadcasts against `[R, G, M, N, T]`."""
    if mask_RHNT.shape[1] == 1:
        return mask_RHNT[:, :, None]
    return group_heads(mask_RHNT, num_groups)


def visible_keys(mask: torch.Tensor) -> torch.Tensor:
    """Which keys a mask lets through: a boolean mask itself; of an additive one, all but the hugely negative entries."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def attention_weights(scores_RGMNT: torch.Tensor, mask: torch.Tensor, sinks_GM: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax of the scores over the visible keys, `A[p, h, i]`.

    Args:
        scores_RGMNT: Scaled (and possibly soft-capped) products of queries and keys. They are overwritten.
        mask: Bool (True for visible keys) or additive, broadcastable to the scores.
        sinks_GM: Score of each head's attention sink: one more term of the normaliser, with value 0.
    """
    if mask.dtype == torch.bool:
        hidden = ~mask
        some = span(hidden.flatten(0, -2).any(0)) if hidden.device.type == "cpu" else _ALL  # others would be waited for
        scores_RGMNT[..., some].masked_fill_(hidden[..., some], torch.finfo(scores_RGMNT.dtype).min)
    else:
        scores_RGMNT += mask.to(scores_RGMNT.dtype)
    if sinks_GM is None:
        return scores_RGMNT.softmax(-1)
    sinks = sinks_GM.to(scores_RGMNT.dtype)[None, :, :, None, None].expand(*scores_RGMNT.shape[:-1], 1)
    return torch.cat([scores_RGMNT, sinks], dim=-1).softmax(-1)[..., :-1]


def magnitudes(weights_RGMNT: torch.Tensor, gradient_RGMND: torch.Tensor, value_RGTD: torch.Tensor) -> torch.Tensor:
    """`w[p, h, i] ||g[p, h]|| ||v[i, h]||`, `[R, G, M, N, T]`: contributions as if gradients and values were parallel."""
    norms = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (gradient_RGMND, value_RGTD))
    return weights_RGMNT * grouped_products(*norms)


@dataclass(frozen=True)
class HeadFormula:
    """How the heads of a layer make its heatmap.

    Args:
        spatial: Spatial importance of a key, `"attention"` or `"loosened"`.
        positive_heads: Keep only the positive part of each head's contribution.
        magnitudes: Add up magnitudes, `w[p, h, i] ||g[p, h]|| ||v[i, h]||`, in place of contributions.
        head_weights: How much each head counts, `[H]`; None: all alike.
    """

    spatial: str = "attention"
    positive_heads: bool = False
    magnitudes: bool = False
    head_weights: torch.Tensor | None = None

    @classmethod
    def of_layer(cls, config: GradELLMConfig, layer: int, num_heads: int, first_head: int) -> "HeadFormula":
        """The formula of some heads of a layer: `num_heads` of them, from `first_head` on."""
        weights = config.head_weights
        unsigned = config.positive_only and config.target != "contrast"
        return cls(
            spatial=config.spatial,
            positive_heads=config.positive_only and config.positive_part == "head",
            magnitudes=weights is not None and weights.feature == "magnitude" and unsigned,
            head_weights=None if weights is None else weights.of_layer(layer, num_heads, first_head),
        )

    def sum_heads(
        self,
        weights_RGMNT: torch.Tensor,
        contributions_RGMNT: torch.Tensor,
        gradient_RGMND: torch.Tensor,
        value_RGTD: torch.Tensor,
        block: Block | None = None,
    ) -> torch.Tensor:
        """The heatmap of a layer, `[R, N, T]`, from the contributions `w[p, h, i] <g[p, h], v[i, h]>` of its heads.

        Args:
            weights_RGMNT: Spatial importance, `w[p, h, i]`.
            gradient_RGMND, value_RGTD: `g[p, h]` and `v[i, h]`, for their norms.
            block: Where these scores are among those of the layer; None: they are all of them.
        """
        heads = contributions_RGMNT
        if self.magnitudes:
            heads = magnitudes(weights_RGMNT, gradient_RGMND, value_RGTD)
        elif self.positive_heads:
            heads = heads.relu()
        if self.head_weights is None:
            return heads.sum((1, 2))
        head_weights = self.head_weights[block.heads(heads.shape[2]) if block else _ALL]
        summed: torch.Tensor = head_weights.to(heads) @ heads.flatten(1, 2).flatten(2)
        return summed.view(-1, *heads.shape[-2:])


def head_heatmap(
    formula: HeadFormula, weights_RHNT: torch.Tensor, value_RGTD: torch.Tensor, gradient_RHND: torch.Tensor
) -> torch.Tensor:
    """The heatmap of a layer, `[R, N, T]`, in float32 or wider."""
    groups, precision = value_RGTD.shape[1], torch.promote_types(value_RGTD.dtype, torch.float32)
    weights, value, gradient = (x.to(precision) for x in (weights_RHNT, value_RGTD, gradient_RHND))
    weights, gradient = group_heads(weights, groups), group_heads(gradient, groups)
    return formula.sum_heads(weights, weights * grouped_products(gradient, value), gradient, value)


def explains_head_outputs(weights_RHNT: torch.Tensor, value_RGTD: torch.Tensor, output_RHND: torch.Tensor) -> bool:
    """Whether attention weights times values are the head outputs, up to rounding. True for NaN, which others report."""
    groups = value_RGTD.shape[1]
    expected = group_heads(weights_RHNT.to(value_RGTD.dtype), groups).flatten(2, 3) @ value_RGTD
    if expected.numel() != output_RHND.numel():
        return False
    if not output_RHND.isfinite().all():
        return True
    error = (expected.reshape_as(output_RHND) - output_RHND).abs().max()
    return bool(error <= HEAD_OUTPUTS.of(value_RGTD.dtype) * output_RHND.abs().max())


def loosened_weights(products: torch.Tensor, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Loosened spatial importance: `minmax_i cos(q[p], k[i])` over the keys visible to `p`; 0 elsewhere.

    Args:
        products: `<q, k>`, shape `[..., N, T]`.
        query, key: Shapes `[..., N, D]` and `[..., T, D]`, for their norms.
        mask: Bool or additive, broadcastable to `products`.
    """
    visible = visible_keys(mask)
    query_norms, key_norms = (torch.linalg.vector_norm(x, dim=-1) for x in (query, key))
    norms: torch.Tensor = query_norms[..., None] * key_norms[..., None, :]
    cosines = products / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    lowest = cosines.masked_fill(~visible, torch.inf).amin(-1, keepdim=True)
    highest = cosines.masked_fill(~visible, -torch.inf).amax(-1, keepdim=True)
    spread = highest - lowest
    scaled = (cosines - lowest) / torch.where(spread > 0, spread, 1)
    return scaled.masked_fill(~visible | (spread <= 0), 0)


def flattened_layer_heatmap(
    gradient_RNC: torch.Tensor,
    query_RNC: torch.Tensor,
    key_RTC: torch.Tensor,
    value_RTC: torch.Tensor,
    mask_RNT: torch.Tensor,
    spatial: str,
) -> torch.Tensor:
    """Signed layer heatmap of `channel="attention_output"`: `c[n, i] = w[p, i] sum_c g[p, c] v[i, c]`, `[R, N, T]`.

    All arguments are flattened over heads; keys and values narrower than the queries are repeated as a whole (tiled),
    as the published implementation does. With `spatial="attention"`, `w` is a softmax over the visible keys of `<q, k>`
    divided by the square root of the flattened width; with `"loosened"`, the min-max scaled cosine.
    """
    width = query_RNC.shape[-1]
    key_RTC, value_RTC = (x.repeat(1, 1, width // x.shape[-1]) for x in (key_RTC, value_RTC))
    products_RNT = query_RNC @ key_RTC.mT
    if spatial == "loosened":
        weights_RNT = loosened_weights(products_RNT, query_RNC, key_RTC, mask_RNT)
    else:
        weights_RNT = attention_weights(products_RNT / width**0.5, mask_RNT)
    return weights_RNT * (gradient_RNC @ value_RTC.mT)
