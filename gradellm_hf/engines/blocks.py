"""Attention in blocks whose scores fit into a processor's cache, over the keys that their queries see."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Chosen by hand, by the backward pass of one layer ("blocks that fit into the cache" in benchmarks/RESULTS.md). Other devices
# start a kernel for each operation on a block, so their blocks are large, and fit into memory rather than into a cache.
_CACHED_SCORES = 2**18  # of each thread of a processor: 1 MiB per temporary in float32
_DEVICE_SCORES = 2**23  # of other devices, and at most: 32 MiB per temporary
_QUERIES = 128  # the first of them sees so many keys less than the last
_FEWEST_QUERIES = 64  # matrix products are slow with fewer


@dataclass(frozen=True)
class Block:
    """Where a block is in the scores of a layer, `[R, G, M, N, T]`. It has all `M` queries of a key/value head.

    Attributes:
        rows, groups, queries, keys: Along `R`, `G`, `N` and `T`.
    """

    rows: slice
    groups: slice
    queries: slice
    keys: slice

    def heads(self, shared: int) -> slice:
        """Its query heads, `shared` for each key/value head."""
        return slice(self.groups.start * shared, self.groups.stop * shared)


def query_blocks(num_queries: int, num_keys: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of at most `size` queries, and the keys up to the own key of the last of them."""
    for first in range(0, num_queries, size):
        last = min(first + size, num_queries)
        yield slice(first, last), slice(0, num_keys - num_queries + last)


def blocks(rows: int, groups: int, shared: int, num_queries: int, num_keys: int, device: torch.device) -> Iterator[Block]:
    """Blocks that cover the scores `[R, G, M, N, T]` of a layer, but for keys after the own key of each query in a block."""
    scores = most = _DEVICE_SCORES
    if device.type == "cpu":
        scores = min(most, _CACHED_SCORES * torch.get_num_threads())
    size = max(_FEWEST_QUERIES, min(most_queries(device), scores // (shared * num_keys)))
    size = max(1, min(size, most // (shared * num_keys)))
    for queries, keys in query_blocks(num_queries, num_keys, size):
        pairs = max(1, scores // (shared * (queries.stop - queries.start) * keys.stop))  # of a row and a key/value head
        some_groups, some_rows = min(pairs, groups), max(1, pairs // groups)
        for row in range(0, rows, some_rows):
            for group in range(0, groups, some_groups):
                yield Block(
                    slice(row, min(row + some_rows, rows)), slice(group, min(group + some_groups, groups)), queries, keys
                )


def most_queries(device: torch.device) -> int:
    """How many queries a block has at most."""
    return _QUERIES if device.type == "cpu" else _DEVICE_SCORES


def span(flags: Tensor) -> slice:
    """The shortest stretch that has every True of flags `[T]`."""
    places = flags.nonzero()
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
