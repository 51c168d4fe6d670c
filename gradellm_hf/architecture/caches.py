"""Key/value caches: forking them, and taking the prompt's part of the one that `generate` filled."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .compat import num_keys, quantized_layer_type

_mutable_lock = threading.RLock()  # torch lets one thread at a time change saved tensors


def prompt_cache(cache: Any, length: int, row_indices: torch.Tensor | None = None) -> Any | None:
    """The first `length` positions of a cache that `generate` filled, as a cache of its own; None if that is not safe.

    What `generate` did after the prompt does not matter: beams are only permuted among copies of one prompt, assisted
    decoding only takes back what it wrote after the prompt, and a static cache has its prompt in front. More than the prompt
    may be taken if each row was written in its place. It is not safe for sliding windows that have already dropped keys, for
    caches that keep something other than one state per position (quantised, recurrent), and for offloaded ones.

    Args:
        cache: `cache` of a finished generation, left unchanged.
        length: Number of leading positions to take.
        row_indices: Which rows of the cache to take, `[R]`; None for all.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, StaticCache, StaticLayer

    if type(cache) not in (DynamicCache, StaticCache) or getattr(cache, "offloading", False) or length < 1:
        return None
    layers: list[Any] = []
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer) or not layer.is_initialized:
            return None
        if not length <= int(layer.get_seq_length()) <= layer.keys.shape[-2]:
            return None  # a window that has slid
        prefix = DynamicSlidingWindowLayer(layer.sliding_window) if hasattr(layer, "sliding_window") else DynamicLayer()
        prefix.lazy_initialization(layer.keys, layer.values)
        prefix.keys, prefix.values = (_take(x[:, :, :length], row_indices) for x in (layer.keys, layer.values))
        if isinstance(prefix, DynamicSlidingWindowLayer):
            prefix.cumulative_length = length
        layers.append(prefix)
    prompt = DynamicCache()
    prompt.layers = layers
    return prompt


def fork_cache(cache: Any, rows: int | None = None) -> Any:
    """An independent cache with the same content (of the first `rows` rows). `cache` can still be used.

    Only caches of plain keys and values (`is_plain`) can be cut to fewer rows. None stays None.
    """
    if not is_plain(cache):
        return copy.deepcopy(cache)
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]  # updates replace keys and values, never write to them
    for layer in fork.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[:rows], layer.values[:rows]
    return fork


def fork_if_plain(cache: Any) -> Any:
    """A fork of a cache of plain keys and values; any other cache itself, as copying it may cost as much as it holds."""
    return fork_cache(cache) if is_plain(cache) else cache


@contextmanager
def written_to_before_backward(cache: Any, starts_from_nothing: bool) -> Iterator[None]:
    """A context for a forward and a backward pass on a cache that the forward pass may write to in place.

    Recurrent caches write into tensors that the backward pass still needs, also in a prompt; plain ones never do.

    Args:
        starts_from_nothing: Whether the forward pass makes the cache, if `cache` is None.
    """
    if is_plain(cache) or (cache is None and not starts_from_nothing):
        yield
        return
    with _mutable_lock, torch.autograd.graph.allow_mutation_on_saved_tensors():
        yield


def is_plain(cache: Any) -> bool:
    """Whether the cache has keys and values by row and position, and nothing else."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    plain_layers = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in plain_layers for layer in cache.layers)


def is_quantized_cache(cache: Any) -> bool:
    """Whether keys and values are only close to those that the model computed."""
    quantized = quantized_layer_type()
    return any(isinstance(layer, quantized) for layer in getattr(cache, "layers", ()))


def key_lengths(cache: Any, num_positions: int) -> dict[int, int]:
    """How many keys each layer that keeps keys will have in a call with `num_positions` more positions."""
    from transformers.cache_utils import CacheLayerMixin

    layers = getattr(cache, "layers", ())
    return {i: num_keys(x, num_positions) for i, x in enumerate(layers) if isinstance(x, CacheLayerMixin)}


def detach_cache(cache: Any) -> None:
    """Detaches all tensors of the cache from the graph."""
    for layer in getattr(cache, "layers", ()):
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor) and value.requires_grad:
                setattr(layer, name, value.detach())


def _take(states: torch.Tensor, row_indices: torch.Tensor | None) -> torch.Tensor:
    if row_indices is not None:
        identity = torch.arange(states.shape[0], device=row_indices.device)
        if not torch.equal(row_indices, identity):
            states = states.index_select(0, row_indices.to(states.device))
    return states.clone() if states.is_inference() else states
