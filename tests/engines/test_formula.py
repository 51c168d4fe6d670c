"""Each function of `formula.py` against an obvious loop."""

import math

import pytest
import torch
from torch import Tensor

from gradellm_hf.engines.formula import (
    attention_weights,
    causal_visibility,
    flattened_layer_heatmap,
    group_heads,
    group_mask,
    grouped_products,
    loosened_weights,
    visible_keys,
)

R, G, M, N, T, D = 2, 3, 2, 4, 7, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_visible(*shape: int) -> Tensor:
    mask = random(*shape, seed=9) > 0
    mask[..., 0] = True
    return mask


def softmax(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [e / sum(exponentials) for e in exponentials]


def minmax(values: list[float]) -> list[float]:
    spread = max(values) - min(values)
    return [(value - min(values)) / spread if spread else 0.0 for value in values]


def cosine(x: Tensor, y: Tensor) -> float:
    return (sum(a * b for a, b in zip(x, y)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))).item()


def over_visible(function, values: list[float], visible: list[bool]) -> Tensor:
    """`function` of the visible values, put back in their places; 0 elsewhere."""
    results = iter(function([value for value, is_visible in zip(values, visible) if is_visible]))
    return torch.tensor([next(results) if is_visible else 0.0 for is_visible in visible], dtype=torch.float64)


def test_query_heads_are_grouped_by_the_key_head_that_repeat_interleave_would_give_them():
    queries = random(R, G * M, N, D)
    grouped = group_heads(queries, G)
    for head in range(G * M):
        assert torch.equal(grouped[:, head // M, head % M], queries[:, head])
    keys = random(R, G, T, D, seed=1)
    repeated = keys.repeat_interleave(M, dim=1)
    torch.testing.assert_close(grouped_products(grouped, keys).flatten(1, 2), queries @ repeated.mT)


def test_the_last_query_sees_every_key_and_each_one_before_sees_one_less():
    mask = causal_visibility(N, T, torch.device("cpu"))
    for query in range(N):
        for key in range(T):
            assert mask[0, 0, query, key] == (key <= T - N + query)


@pytest.mark.parametrize("heads", [1, G * M])
def test_a_mask_meets_the_scores_of_its_own_heads(heads):
    mask = random(R, heads, N, T)
    grouped = group_mask(mask, G).expand(R, G, M, N, T)
    for head in range(G * M):
        assert torch.equal(grouped[:, head // M, head % M], mask[:, head % heads])


def test_an_additive_mask_hides_only_the_hugely_negative():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        lowest = torch.finfo(dtype).min
        mask = torch.tensor([0.0, -3.5, lowest, -math.inf, 2.0], dtype=dtype)
        assert visible_keys(mask).tolist() == [True, True, False, False, True]
    boolean = torch.tensor([True, False])
    assert torch.equal(visible_keys(boolean), boolean)


def test_attention_weights_are_a_softmax_over_the_visible_keys():
    scores, visible = random(R, G, M, N, T), some_visible(R, 1, 1, N, T)
    additive = torch.zeros(R, 1, 1, N, T, dtype=torch.float64).masked_fill(~visible, torch.finfo(torch.float64).min)
    for mask in (visible, additive):
        weights = attention_weights(scores.clone(), mask)
        for r, g, m, n in torch.cartesian_prod(*map(torch.arange, (R, G, M, N))).tolist():
            expected = over_visible(softmax, scores[r, g, m, n].tolist(), visible[r, 0, 0, n].tolist())
            torch.testing.assert_close(weights[r, g, m, n], expected)


def test_an_additive_bias_such_as_alibi_is_part_of_the_scores():
    scores, bias = random(R, G, M, N, T), random(R, G, M, N, T, seed=1)
    torch.testing.assert_close(attention_weights(scores.clone(), bias), (scores + bias).softmax(-1))


def test_an_attention_sink_takes_its_share_of_each_head_and_gives_nothing():
    scores, sinks = random(R, G, M, N, T), random(G, M, seed=1)
    visible = some_visible(R, 1, 1, N, T)
    weights = attention_weights(scores.clone(), visible, sinks)
    for r, g, m, n in torch.cartesian_prod(*map(torch.arange, (R, G, M, N))).tolist():

        def with_sink(seen: list[float], sink: float = sinks[g, m].item()) -> list[float]:
            return softmax([*seen, sink])[:-1]

        expected = over_visible(with_sink, scores[r, g, m, n].tolist(), visible[r, 0, 0, n].tolist())
        torch.testing.assert_close(weights[r, g, m, n], expected)


def test_loosened_weights_are_minmax_scaled_cosines_over_the_visible_keys():
    query, key, visible = random(R, G, M, N, D), random(R, G, T, D, seed=1), some_visible(R, 1, 1, N, T)
    weights = loosened_weights(grouped_products(query, key), query, key[:, :, None], visible)
    for r, g, m, n in torch.cartesian_prod(*map(torch.arange, (R, G, M, N))).tolist():
        cosines = [cosine(query[r, g, m, n], key[r, g, i]) for i in range(T)]
        expected = over_visible(minmax, cosines, visible[r, 0, 0, n].tolist())
        torch.testing.assert_close(weights[r, g, m, n], expected)


def test_loosened_weights_are_zero_where_all_visible_cosines_are_equal():
    query = random(1, 1, 2, D)
    key = random(1, 1, T, D, seed=1)
    only_one = torch.zeros(1, 1, 2, T, dtype=torch.bool)
    only_one[..., 3] = True
    assert not loosened_weights(query @ key.mT, query, key, only_one).any()
    same = key[..., :1, :].expand(1, 1, T, D)
    everything = torch.ones(1, 1, 2, T, dtype=torch.bool)
    assert not loosened_weights(query @ same.mT, query, same, everything).any()


def test_loosened_weights_survive_a_key_of_zeros():
    query, key = random(1, 1, 1, D), random(1, 1, T, D, seed=1)
    key[0, 0, 2] = 0
    weights = loosened_weights(query @ key.mT, query, key, torch.ones(1, 1, 1, T, dtype=torch.bool))
    cosines = [0.0 if i == 2 else cosine(query[0, 0, 0], key[0, 0, i]) for i in range(T)]
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor(minmax(cosines), dtype=torch.float64))


@pytest.mark.parametrize("spatial", ["attention", "loosened"])
def test_the_flattened_heatmap_repeats_narrow_keys_and_values_as_a_whole(spatial):
    wide, narrow = 6, 2
    gradient, query = random(R, N, wide), random(R, N, wide, seed=1)
    key, value = random(R, T, narrow, seed=2), random(R, T, narrow, seed=3)
    visible = some_visible(R, N, T)
    heatmap = flattened_layer_heatmap(gradient, query, key, value, visible, spatial)
    for r, n in torch.cartesian_prod(torch.arange(R), torch.arange(N)).tolist():
        tiled_keys = [torch.tensor([key[r, i, c % narrow] for c in range(wide)]) for i in range(T)]
        if spatial == "loosened":
            function, values = minmax, [cosine(query[r, n], k) for k in tiled_keys]
        else:
            function, values = softmax, [(query[r, n] @ k.double()).item() / math.sqrt(wide) for k in tiled_keys]
        weights = over_visible(function, values, visible[r, n].tolist())
        for i in range(T):
            product = sum(gradient[r, n, c] * value[r, i, c % narrow] for c in range(wide))
            torch.testing.assert_close(heatmap[r, n, i], weights[i] * product, rtol=1e-6, atol=1e-6)
