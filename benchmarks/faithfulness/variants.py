"""Variants of Grad-ELLM that may bring it closer to leave-one-out, at the cost of one replay.

A variant is a function of a `Recording`; one recording serves all variants of a text. Its scores are `[R, N, T]`; shape letters
as in `recorded.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradellm_hf.methods.registry import heatmaps
from gradellm_hf.metrics.perturbation import PerturbedText

from .recorded import Recording, last_recording

_SMALLEST_REST = 1e-4  # the least attention that counts as left when a position is taken out; by hand: keeps quotients finite


@dataclass(frozen=True)
class Variant:
    """A variant of Grad-ELLM.

    Attributes:
        name: What `VARIANTS` calls it.
        group: What it varies.
        description: One line.
        scores: From a recording to scores `[R, N, T]`, of any sign; those of positions not seen do not count.
    """

    name: str
    group: str
    description: str
    scores: Callable[[Recording], Tensor]

    def method(self, model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None, /) -> Tensor:
        """Its heatmaps, `[R, N, S]`: a `gradellm_hf.methods.Method`. The text is read once for all variants in a row."""
        text = PerturbedText(model, sequences, prompt_length, attention_mask)
        return heatmaps(text, self.scores(last_recording(text)))


def relu_per_layer(r: Recording) -> Tensor:
    return positive(r).sum(1)


def positive(r: Recording) -> Tensor:
    """Positive part of each layer's heatmap, `[R, L, N, T]`."""
    return r.layers.relu()


def mean_attention(r: Recording) -> Tensor:
    return r.attention.mean((1, 2))


# Layers


def between(first: float, last: float) -> Callable[[Recording], Tensor]:
    """The layers between two shares of the depth; at least one."""

    def scores(r: Recording) -> Tensor:
        layers = positive(r)
        start, stop = (round(share * layers.shape[1]) for share in (first, last))
        start = min(start, layers.shape[1] - 1)
        return layers[:, start : max(stop, start + 1)].sum(1)

    return scores


# Sinks and the own position


def without_first(weights: Tensor, r: Recording) -> Tensor:
    """Attention weights `[R, ..., T]` without the first position, scaled to the same sum; 0 if nothing else is seen."""
    first = r.first.view(r.first.shape[0], *(1 for _ in weights.shape[2:]), -1)
    rest = weights.masked_fill(first, 0)
    return rest * ratio(weights.sum(-1, keepdim=True), rest.sum(-1, keepdim=True))


def first_spread(r: Recording) -> Tensor:
    scores, others = relu_per_layer(r), r.seen & ~r.first
    amount = scores.masked_fill(~r.first, 0).sum(-1, keepdim=True)
    share = amount / others.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(others, scores + share, 0)


def relative_products(r: Recording, weights: Tensor) -> Tensor:
    """`<g, v_i - sum_j w_j v_j>`, `[R, L, H, N, T]`."""
    return r.products - (weights * r.products).sum(-1, keepdim=True)


def relative_to_mean(r: Recording) -> Tensor:
    seen = r.seen[:, None, None].to(r.products)
    return layered(r.attention * relative_products(r, seen / seen.sum(-1, keepdim=True).clamp_min(1)))


def removal(r: Recording) -> Tensor:
    weights = r.attention / (1 - r.attention).clamp_min(_SMALLEST_REST)
    return layered(weights * relative_products(r, r.attention))


def layered(contributions: Tensor) -> Tensor:
    """Contributions `[R, L, H, N, T]` combined as in `relu_per_layer`: the positive part of each layer's sum, added up."""
    return contributions.sum(2).relu().sum(1)


# Normalisation


def ratio(x: Tensor, y: Tensor) -> Tensor:
    """`x / y` for `y >= 0`; 0 if both are 0."""
    return x / y.clamp_min(torch.finfo(y.dtype).tiny)


def share(x: Tensor) -> Tensor:
    """Scaled to the sum 1."""
    return ratio(x, x.sum(-1, keepdim=True))


def gradient_normalised(r: Recording) -> Tensor:
    return ratio(positive(r), layer_gradient_norms(r)).sum(1)


def layer_gradient_norms(r: Recording) -> Tensor:
    """`[R, L, N, 1]`."""
    return r.gradient.square().sum((2, 4)).sqrt()[..., None]


# Values


def weighted_attention(factor: Tensor, r: Recording) -> Tensor:
    """Attention times a factor of each head, step or position, added up."""
    return (r.attention * factor).sum((1, 2))


def gradient_norms(r: Recording) -> Tensor:
    return r.gradient.norm(dim=-1)[..., None]


def value_norms(r: Recording) -> Tensor:
    return r.values.norm(dim=-1)[..., None, :]


def head_importance(r: Recording) -> Tensor:
    """`|<g, z>|`, `[R, L, H, N, 1]`."""
    return r.contributions.sum(-1, keepdim=True).abs()


# Targets


def log_probability(r: Recording) -> Tensor:
    return r.layers_of(r.gradient - r.expected_gradient).relu().sum(1)


def contrast_runner_up(r: Recording) -> Tensor:
    best, second = r.likeliest_gradients[:2]
    runner_up = torch.where(r.runner_up[:, None, None, :, None] == 0, best, second)
    return r.layers_of(r.gradient - runner_up).relu().sum(1)


def probability(r: Recording) -> Tensor:
    return r.probability[..., None] * log_probability(r)


def likeliest_probabilities(r: Recording) -> Tensor:
    """`[K, R, 1, N, 1]`."""
    return r.likeliest_probabilities[:, :, None, :, None]


def likeliest_mean(r: Recording) -> Tensor:
    weights = likeliest_probabilities(r).sqrt()
    return ((weights * r.likeliest_layers).sum(0) / weights.sum(0)).relu().sum(1)


# A second hop


def rollout(attention: Tensor, kept: float) -> list[Tensor]:
    """For each layer, the positions that the stream that enters it is made of, if each layer below keeps a share of it.

    The rest is what the layer reads by `attention [R, L, T, T]`. Source: Abnar & Zuidema 2020.

    Returns:
        `[R, T, T]` per layer: one row per position of the layer, one column per position of the text.
    """
    identity = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    origins = [identity.expand_as(attention[:, 0])]
    for weights in attention[:, :-1].unbind(1):
        origins.append((kept * identity + (1 - kept) * weights) @ origins[-1])
    return origins


def second_hop(r: Recording, kept: float, attention: Tensor | None = None) -> Tensor:
    origins = torch.stack(rollout(r.mean_attention if attention is None else attention, kept), dim=1)
    return (positive(r) @ origins).sum(1)


def one_hop(r: Recording, strength: float, attention: Tensor | None = None) -> Tensor:
    attention = r.mean_attention if attention is None else attention
    layers = positive(r)
    numbers = torch.arange(layers.shape[1], device=layers.device).clamp_min(1)[:, None, None]
    lower = (attention.cumsum(1) - attention) / numbers
    return (layers + strength * layers @ lower).sum(1)


# Combinations


def input_gradient(r: Recording) -> Tensor:
    """`||x_i|| ||d f_n / d x_i||`."""
    return r.input_norms[:, None] * r.saliency()


_TABLE = [
    Variant(
        "relu_per_layer",
        "relu",
        "Each layer's heads added up, positive part, layers added up; what the others vary. The default of 0.1.",
        relu_per_layer,
    ),
    # Layers
    Variant("last_layer", "layers", "The last layer only.", between(1, 1)),
    Variant("last_quarter", "layers", "The last quarter of the layers.", between(0.75, 1)),
    Variant("last_half", "layers", "The last half of the layers.", between(0.5, 1)),
    Variant("first_half", "layers", "The first half of the layers.", between(0, 0.5)),
    Variant("middle_half", "layers", "The second and third quarter of the layers.", between(0.25, 0.75)),
    Variant("all_but_first_layer", "layers", "All layers but the first.", lambda r: positive(r)[:, 1:].sum(1)),
    Variant("all_but_last_layer", "layers", "All layers but the last.", lambda r: positive(r)[:, :-1].sum(1)),
    # Where the sign is dropped
    Variant(
        "relu_per_head",
        "relu",
        "Positive part of each head, the default; the same as the weights times the positive part of their gradient, `<g, v>`.",
        lambda r: r.contributions.relu().sum((1, 2)),
    ),
    Variant(
        "relu_per_group",
        "relu",
        "Positive part of the sum of the heads that share a key/value head.",
        lambda r: r.contributions.unflatten(2, (r.num_groups, -1)).sum(3).relu().sum((1, 2)),
    ),
    Variant("relu_at_end", "relu", "Positive part of the sum over the layers.", lambda r: r.layers.sum(1).relu()),
    Variant("absolute_per_layer", "relu", "Magnitude of each layer.", lambda r: r.layers.abs().sum(1)),
    Variant("absolute_per_head", "relu", "Magnitude of each head.", lambda r: r.contributions.abs().sum((1, 2))),
    Variant("absolute_at_end", "relu", "Magnitude of the sum over the layers.", lambda r: r.layers.sum(1).abs()),
    Variant("signed", "relu", "The sum over the layers with its sign.", lambda r: r.layers.sum(1)),
    # Sinks and the own position
    Variant("first_zero", "sinks", "The first position's score is 0.", lambda r: relu_per_layer(r).masked_fill(r.first, 0)),
    Variant("first_spread", "sinks", "The first position's score is spread evenly over the others.", first_spread),
    Variant(
        "own_zero",
        "sinks",
        "The score of the predicting position itself is 0.",
        lambda r: relu_per_layer(r).masked_fill(r.own, 0),
    ),
    Variant(
        "first_and_own_zero",
        "sinks",
        "The scores of the first and of the predicting position are 0.",
        lambda r: relu_per_layer(r).masked_fill(r.first | r.own, 0),
    ),
    Variant(
        "renormalised_without_first",
        "sinks",
        "Attention weights without the first position, scaled to sum to 1 again.",
        lambda r: layered(without_first(r.attention, r) * r.products),
    ),
    Variant(
        "values_minus_output",
        "sinks",
        "`A_i <g, v_i - z>`: the gradient at the attention scores, before the softmax.",
        lambda r: layered(r.attention * relative_products(r, r.attention)),
    ),
    Variant(
        "values_minus_first",
        "sinks",
        "`A_i <g, v_i - v_0>`: values relative to that of the first position.",
        lambda r: layered(r.attention * relative_products(r, r.first[:, None, None].to(r.attention))),
    ),
    Variant("values_minus_mean", "sinks", "`A_i <g, v_i - mean v>`, the mean over the positions seen.", relative_to_mean),
    Variant(
        "removal",
        "sinks",
        "`A_i / (1 - A_i) <g, v_i - z>`: what `f` loses, to first order, as a head stops reading a position and renormalises.",
        removal,
    ),
    # Normalisation
    Variant("gradient_normalised", "normalisation", "Each layer divided by the norm of its gradient.", gradient_normalised),
    Variant("layer_sum_normalised", "normalisation", "Each layer scaled to the sum 1.", lambda r: share(positive(r)).sum(1)),
    Variant(
        "layer_maximum_normalised",
        "normalisation",
        "Each layer scaled to the maximum 1.",
        lambda r: ratio(positive(r), positive(r).amax(-1, keepdim=True)).sum(1),
    ),
    Variant(
        "stream_norm",
        "normalisation",
        "Each layer times the norm of the residual stream that enters it: gradients relative to the size of the stream.",
        lambda r: (positive(r) * r.stream_norms[..., None]).sum(1),
    ),
    Variant(
        "head_sum_normalised",
        "normalisation",
        "Each head's positive part scaled to the sum 1.",
        lambda r: share(r.contributions.relu()).sum((1, 2)),
    ),
    # Values
    Variant("attention", "values", "Attention weights, mean over layers and heads.", mean_attention),
    Variant("attention_value_norm", "values", "`A ||v||`.", lambda r: weighted_attention(value_norms(r), r)),
    Variant("attention_output_norm", "values", "`A ||W_o v||`.", lambda r: weighted_attention(r.output_norms[..., None, :], r)),
    Variant("attention_gradient_norm", "values", "`A ||g||`.", lambda r: weighted_attention(gradient_norms(r), r)),
    Variant(
        "attention_gradient_value_norm",
        "values",
        "`A ||g|| ||v||`.",
        lambda r: weighted_attention(gradient_norms(r) * value_norms(r), r),
    ),
    Variant(
        "attention_head_importance",
        "values",
        "`A |<g, z>|`: heads weighted by what their output adds.",
        lambda r: weighted_attention(head_importance(r), r),
    ),
    # Targets
    Variant("log_probability", "targets", "`f`: log-probability of the token.", log_probability),
    Variant("contrast_runner_up", "targets", "`f`: logit less that of the likeliest other token.", contrast_runner_up),
    Variant(
        "probability",
        "targets",
        "`f`: probability of the token. In one step a multiple of `log_probability`.",
        probability,
    ),
    Variant(
        "likeliest_mean",
        "targets",
        "`f`: mean log-probability of the 5 likeliest tokens, weighted by the root of their probabilities.",
        likeliest_mean,
    ),
    Variant(
        "likeliest_absolute",
        "targets",
        "`sum_k p_k |c_k|` in each layer, over the log-probabilities of the 5 likeliest tokens.",
        lambda r: (likeliest_probabilities(r) * r.likeliest_layers.abs()).sum((0, 2)),
    ),
    Variant(
        "likeliest_positive",
        "targets",
        "`sum_k p_k max(0, c_k)` in each layer, over the log-probabilities of the 5 likeliest tokens.",
        lambda r: (likeliest_probabilities(r) * r.likeliest_layers.relu()).sum((0, 2)),
    ),
    Variant(
        "hellinger_per_layer",
        "targets",
        "`(sum_k p_k c_k^2)^1/2` in each layer: the Hellinger distance that taking `c` out makes, to first order, times 8^1/2.",
        lambda r: (likeliest_probabilities(r) * r.likeliest_layers.square()).sum(0).sqrt().sum(1),
    ),
    Variant(
        "hellinger_at_end",
        "targets",
        "The same of the sum over the layers.",
        lambda r: (likeliest_probabilities(r)[:, :, 0] * r.likeliest_layers.sum(2).square()).sum(0).sqrt(),
    ),
    # A second hop
    Variant(
        "second_hop_50",
        "second hop",
        "What a layer reads from a position goes to where that position's stream is from, by rollout (half stays).",
        lambda r: second_hop(r, 0.5),
    ),
    Variant("second_hop_80", "second hop", "The same; 0.8 of the stream stays in each layer.", lambda r: second_hop(r, 0.8)),
    Variant(
        "second_hop_50_without_first",
        "second hop",
        "As `second_hop_50`, attention of the lower layers without the first position.",
        lambda r: second_hop(r, 0.5, without_first(r.mean_attention, r)),
    ),
    Variant(
        "second_hop_80_without_first",
        "second hop",
        "As `second_hop_80`, attention of the lower layers without the first position.",
        lambda r: second_hop(r, 0.8, without_first(r.mean_attention, r)),
    ),
    Variant(
        "one_hop_25",
        "second hop",
        "A layer's scores, and 0.25 of them passed on by the mean attention of the layers below.",
        lambda r: one_hop(r, 0.25),
    ),
    Variant("one_hop_50", "second hop", "The same with 0.5.", lambda r: one_hop(r, 0.5)),
    Variant("one_hop_100", "second hop", "The same with 1.", lambda r: one_hop(r, 1)),
    Variant(
        "one_hop_100_without_first",
        "second hop",
        "As `one_hop_100`, attention of the lower layers without the first position.",
        lambda r: one_hop(r, 1, without_first(r.mean_attention, r)),
    ),
    # Combinations
    Variant(
        "attention_geometric_mean",
        "combinations",
        "Geometric mean of `relu_per_layer` and `attention`.",
        lambda r: (relu_per_layer(r) * mean_attention(r)).sqrt(),
    ),
    Variant(
        "saliency_sum",
        "combinations",
        "`relu_per_layer` and saliency, each scaled to the sum 1, added up. One backward pass per step.",
        lambda r: share(relu_per_layer(r)) + share(r.saliency()),
    ),
    Variant(
        "saliency_product",
        "combinations",
        "`relu_per_layer` times the root of `||x_i|| ||d f / d x_i||`. One backward pass per step.",
        lambda r: relu_per_layer(r) * input_gradient(r).sqrt(),
    ),
    Variant(
        "relu_per_head_but_first_layer",
        "combinations",
        "Positive part of each head, all layers but the first.",
        lambda r: r.contributions[:, 1:].relu().sum((1, 2)),
    ),
    Variant(
        "relu_per_head_gradient_normalised",
        "combinations",
        "Positive part of each head, each layer divided by the norm of its gradient.",
        lambda r: ratio(r.contributions.relu().sum(2), layer_gradient_norms(r)).sum(1),
    ),
    Variant(
        "gradient_value_norm_but_first_layer",
        "combinations",
        "`A ||g|| ||v||`, all layers but the first.",
        lambda r: (r.attention * gradient_norms(r) * value_norms(r))[:, 1:].sum((1, 2)),
    ),
    Variant(
        "relu_per_head_and_norms",
        "combinations",
        "Geometric mean of `relu_per_head` and `attention_gradient_value_norm`.",
        lambda r: (r.contributions.relu().sum((1, 2)) * weighted_attention(gradient_norms(r) * value_norms(r), r)).sqrt(),
    ),
    Variant(
        "relu_per_head_saliency_product",
        "combinations",
        "`relu_per_head` times the root of `||x_i|| ||d f / d x_i||`. One backward pass per step.",
        lambda r: r.contributions.relu().sum((1, 2)) * input_gradient(r).sqrt(),
    ),
    Variant(
        "second_hop_saliency",
        "combinations",
        "Geometric mean of `second_hop_80` and saliency. One backward pass per step.",
        lambda r: (second_hop(r, 0.8) * r.saliency()).sqrt(),
    ),
]

#: All variants by name; `VARIANTS[name].method` is a `gradellm_hf.methods.Method`.
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _TABLE}
