"""`python -m benchmarks.fused_attention [THREADS]`: would attention's backward pass be faster, fused by `torch.compile`?

One layer of SmolLM2's shape on a processor. Processor seconds of its backward pass, heatmap included: as the package computes
it; in the same blocks, with everything between the matrix products as one compiled function; and the products alone, which
nothing saves.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradellm_hf.engines.blocks import blocks
from gradellm_hf.engines.formula import HeadFormula, causal_visibility, group_heads, grouped_products
from gradellm_hf.engines.position_local import AttentionOptions, position_local_attention

_HEADS, _GROUPS, _CHANNELS = 9, 3, 64
_SHAPES = ((512, 1100), (512, 2100), (128, 8192))
_ALL = slice(None)
#: Of products `[R, G, M, N, T]` of queries and keys, those of gradients and values, and what is hidden: the weights, the
#: heatmap `[R, N, T]` and the gradient of the scores.
Passes = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def passes(products: Tensor, contributions: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weights = products.masked_fill(hidden, torch.finfo(products.dtype).min).softmax(-1)
    weighted = contributions * weights
    return weights, weighted.relu().sum((1, 2)), weighted - weights * weighted.sum(-1, keepdim=True)


def no_passes(products: Tensor, contributions: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return products, products[:, 0, 0], products


def backward(query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, options: AttentionOptions, run: Passes) -> Tensor:
    """The heatmap `[R, N, T]`; gradients are computed as well, and dropped."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    q_all, g_all = group_heads(query, _GROUPS) * options.scaling, group_heads(gradient, _GROUPS)
    hidden, heatmap = ~options.mask[:, :, None], key.new_zeros(1, num_queries, num_keys)
    d_query, d_key, d_value = torch.zeros_like(q_all), torch.zeros_like(key), torch.zeros_like(value)
    for block in blocks(1, _GROUPS, _HEADS // _GROUPS, num_queries, num_keys, key.device):
        here, keys = (block.rows, block.groups, _ALL, block.queries), (block.rows, block.groups, block.keys)
        q, g = q_all[here], g_all[here]
        products, contributions = grouped_products(q, key[keys]), grouped_products(g, value[keys])
        weights, summed, d_scores = run(products, contributions, hidden[..., block.queries, block.keys])
        heatmap[block.rows, block.queries, block.keys] += summed
        d_query[here] = (d_scores.flatten(2, 3) @ key[keys]).view_as(q)
        first = num_keys - num_queries + block.queries.start
        own = (block.rows, block.groups, slice(first, first + q.shape[3]))
        d_key[own] = (d_scores.diagonal(first, -2, -1)[..., None] * q).sum(2)
        d_value[own] = (weights.diagonal(first, -2, -1)[..., None] * g).sum(2)
    return heatmap


def seconds(num_queries: int, num_keys: int, compiled: Passes, repetitions: int = 7) -> dict[str, float]:
    """Medians by way; and, as `difference`, how far the heatmaps of the first two are apart, relative to the largest score."""
    torch.manual_seed(0)
    query, key, value, gradient = (
        torch.randn(1, heads, length, _CHANNELS)
        for heads, length in ((_HEADS, num_queries), (_GROUPS, num_keys), (_GROUPS, num_keys), (_HEADS, num_queries))
    )
    options = AttentionOptions(causal_visibility(num_queries, num_keys, key.device), _CHANNELS**-0.5)

    def ours() -> tuple[float, Tensor]:
        inputs, found = [x.requires_grad_() for x in (query, key, value)], []
        anchor = torch.zeros((), requires_grad=True)
        output = position_local_attention(anchor, *inputs, options, HeadFormula(positive_heads=True), found.append)
        start = time.process_time()
        torch.autograd.grad(output, [anchor, *inputs], gradient, allow_unused=True)
        return time.process_time() - start, found[0]

    def with_passes(run: Passes) -> tuple[float, Tensor]:
        with torch.no_grad():
            start = time.process_time()
            heatmap = backward(query, key, value, gradient, options, run)
            return time.process_time() - start, heatmap

    ways: dict[str, Callable[[], tuple[float, Tensor]]] = {
        "as it is": ours,
        "compiled": lambda: with_passes(compiled),
        "products alone": lambda: with_passes(no_passes),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    heatmaps = {name: way()[1] for name, way in ways.items()}  # warms up, and compiles
    for _ in range(repetitions):
        for name, way in ways.items():
            times[name].append(way()[0])
    difference = (heatmaps["as it is"] - heatmaps["compiled"]).abs().max() / heatmaps["as it is"].max()
    return {**{name: statistics.median(values) for name, values in times.items()}, "difference": float(difference)}


def main(threads: int) -> None:
    torch.set_num_threads(threads)
    compiled: Any = torch.compile(passes, dynamic=True)
    for num_queries, num_keys in _SHAPES:
        start = time.perf_counter()
        found = ", ".join(f"{name} {value:.3g}" for name, value in seconds(num_queries, num_keys, compiled).items())
        print(
            f"N={num_queries}, T={num_keys}, threads={threads}: {found} ({time.perf_counter() - start:.0f} s in all)",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
