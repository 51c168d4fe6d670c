"""Position-local attention by itself: its value is attention, its gradient that of each query at its own position."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_hf.engines.formula import HeadFormula, causal_visibility, grouped_products
from gradellm_hf.engines.position_local import (
    AttentionOptions,
    PositionLocalAttention,
    add_position_bias,
    attention_output,
    own_column_gradient,
)

R, G, M, N, T, D, DV = 2, 3, 2, 4, 7, 5, 6  # rows, key heads, query heads per key head, queries, keys, dims
H = G * M


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PADDED = causal_visibility(N, T, torch.device("cpu")).expand(R, 1, N, T).clone()
PADDED[1, :, :, :2] = False
ADDITIVE = torch.zeros(R, 1, N, T, dtype=torch.float64).masked_fill(~PADDED, torch.finfo(torch.float64).min)

WINDOWED = PADDED & ~torch.ones(N, T, dtype=torch.bool).tril(T - N - 2)  # each query sees two keys

SETTINGS: dict[str, dict[str, Any]] = {
    "causal": {"mask": causal_visibility(N, T, torch.device("cpu"))},
    "padded": {"mask": PADDED},
    "windowed": {"mask": WINDOWED},
    "additive": {"mask": ADDITIVE},
    "per head": {"mask": ADDITIVE + random(R, H, N, T, seed=9)},
    "soft-capped": {"mask": PADDED, "softcap": 0.7},
    "sinks": {"mask": PADDED, "sinks": random(H, seed=8)},
    "everything": {"mask": ADDITIVE + random(1, H, 1, T, seed=7), "softcap": 1.5, "sinks": random(H, seed=6)},
}


def plain_attention(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    """Weights `[R, H, N, T]` and outputs, one head at a time, as one would write them down."""
    weights, outputs = [], []
    for r in range(R):
        for h in range(H):
            scores = query[r, h] @ key[r, h // M].T * options.scaling
            if options.softcap is not None:
                scores = options.softcap * torch.tanh(scores / options.softcap)
            mask = options.mask.expand(R, H, N, T)[r, h]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
            exponentials = scores.exp()
            normaliser = exponentials.sum(-1, keepdim=True)
            if options.sinks is not None:
                normaliser = normaliser + options.sinks[h].exp()
            weights.append(exponentials / normaliser)
            outputs.append(weights[-1] @ value[r, h // M])
    return torch.stack(weights).unflatten(0, (R, H)), torch.stack(outputs).unflatten(0, (R, H))


def one_query(x: Tensor, n: int) -> Tensor:
    """Keys or values with a gradient at the own position of query `n` only."""
    own = T - N + n
    return torch.cat([x[:, :, :own].detach(), x[:, :, own : own + 1], x[:, :, own + 1 :].detach()], dim=2)


@pytest.fixture(params=SETTINGS)
def options(request: pytest.FixtureRequest) -> AttentionOptions:
    return AttentionOptions(scaling=0.4, **SETTINGS[request.param])


@pytest.fixture
def states() -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((R, H, N, D), (R, G, T, D), (R, G, T, DV))
    return tuple(random(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes))  # type: ignore[return-value]


def test_its_value_is_attention(options, states):
    torch.testing.assert_close(attention_output(*states, options), plain_attention(*states, options)[1])


def test_its_gradient_and_its_heatmap_are_those_of_each_query_alone(options, states, monkeypatch):
    monkeypatch.setattr("gradellm_hf.engines.blocks._FEWEST_QUERIES", 3)  # blocks of 3 and of 1, of one head and one row
    monkeypatch.setattr("gradellm_hf.engines.blocks._CACHED_SCORES", 1)
    query, key, value = states
    upstream, recorded = random(R, H, N, DV, seed=5), []
    anchor = torch.zeros((), requires_grad=True)
    output = PositionLocalAttention.apply(anchor, query, key, value, options.mask, options, HeadFormula(), recorded.append)
    actual = torch.autograd.grad(output, states, upstream)
    expected = [torch.zeros_like(x) for x in states]
    for n in range(N):
        alone = plain_attention(query, one_query(key, n), one_query(value, n), options)[1]
        for total, part in zip(expected, torch.autograd.grad(alone[:, :, n], states, upstream[:, :, n]), strict=True):
            total += part
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
    weights = plain_attention(query, key, value, options)[0]
    contributions = torch.einsum("rhnd,rhtd->rhnt", upstream, value.repeat_interleave(M, dim=1))
    torch.testing.assert_close(recorded[0], (weights * contributions).sum(1).detach())


def recorded(states: tuple[Tensor, ...], options: AttentionOptions, formula: HeadFormula, upstream: Tensor) -> tuple[Any, ...]:
    """The gradients of the states, and the heatmap."""
    heatmaps: list[Tensor] = []
    anchor = torch.zeros((), requires_grad=True)
    output = PositionLocalAttention.apply(anchor, *states, options.mask, options, formula, heatmaps.append)
    return *torch.autograd.grad(output, states, upstream), heatmaps[0]


def small_blocks(monkeypatch: pytest.MonkeyPatch, scores: int, queries: int) -> None:
    monkeypatch.setattr("gradellm_hf.engines.blocks._FEWEST_QUERIES", 1)
    monkeypatch.setattr("gradellm_hf.engines.blocks._QUERIES", queries)
    monkeypatch.setattr("gradellm_hf.engines.blocks._CACHED_SCORES", scores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize("scores", [1, 2 * M * T, 5 * M * T])  # one head and one row; two heads; both rows
@pytest.mark.parametrize(
    "formula",
    [
        HeadFormula(positive_heads=True),
        HeadFormula(positive_heads=True, head_weights=random(H, seed=3).abs()),
        HeadFormula(magnitudes=True, head_weights=random(H, seed=3).abs()),
        HeadFormula(spatial="loosened"),
    ],
    ids=["positive", "weighted", "magnitudes", "loosened"],
)
def test_every_formula_is_the_same_in_blocks_of_any_shape(scores, formula, options, states, monkeypatch):
    upstream = random(R, H, N, DV, seed=5)
    small_blocks(monkeypatch, 10**6, N)
    whole = recorded(states, options, formula, upstream)
    small_blocks(monkeypatch, scores, 3)
    for part, expected in zip(recorded(states, options, formula, upstream), whole, strict=True):
        torch.testing.assert_close(part, expected)


def test_keys_that_no_query_of_a_block_sees_are_not_looked_at(states, monkeypatch):
    small_blocks(monkeypatch, 10**6, 2)
    query, key, value = (x.detach().clone().requires_grad_() for x in states)
    options, upstream = AttentionOptions(WINDOWED[:1], scaling=0.4), random(R, H, N, DV, seed=5)
    expected = recorded((query, key, value), options, HeadFormula(), upstream)
    seen = WINDOWED[0, 0].any(0)
    with torch.no_grad():
        assert not seen.all()
        key[:, :, ~seen] = value[:, :, ~seen] = torch.nan  # hidden from every query: a window that has moved on
        products = []
        monkeypatch.setattr(
            "gradellm_hf.engines.position_local.grouped_products",
            lambda x, y: products.append(y.shape[2]) or grouped_products(x, y),
        )
    actual = recorded((query, key, value), options, HeadFormula(), upstream)
    assert products == [3, 3, 3, 3]  # two queries of two keys each: to the backward pass there are no others
    for part, same in zip(actual, expected, strict=True):
        torch.testing.assert_close(part, same)


def test_a_position_bias_gets_the_gradient_of_its_whole_row():
    query, key, value = random(R, H, N, D, seed=0), random(R, G, T, D, seed=1), random(R, G, T, DV, seed=2)
    bias = random(R, H, N, T, seed=3).requires_grad_()
    upstream = random(R, H, N, DV, seed=5)

    def gradient(attend) -> Tensor:
        options = AttentionOptions(mask=add_position_bias(PADDED, bias), scaling=0.4)
        return torch.autograd.grad(attend(options), bias, upstream)[0]

    anchor = torch.zeros((), requires_grad=True)
    actual = gradient(lambda o: PositionLocalAttention.apply(anchor, query, key, value, o.mask, o, None, None))
    expected = gradient(lambda o: plain_attention(query, key, value, o)[1])
    torch.testing.assert_close(actual, expected)


def test_a_mask_made_from_values_gets_a_gradient_at_the_own_key_only():
    mask = random(R, H, N, T, seed=4).requires_grad_()
    local = own_column_gradient(mask)
    assert torch.equal(local, mask)
    (gradient,) = torch.autograd.grad(local.sum(), mask)
    assert torch.equal(gradient, torch.eye(T, dtype=torch.float64)[T - N :].expand(R, H, N, T))
