"""Key/value caches: forking them, and taking the prompt's part of the one that `generate` filled."""

import copy
from typing import Any

import torch

from .compat import num_keys, quantized_layer_type


def prompt_cache(cache: Any, length: int, row_indices: torch.Tensor | None = None) -> Any | None:
    """The first `length` positions of a cache that `generate` filled, as a cache of its own; None where that is not safe.

    What `generate` did after the prompt does not matter: beams are only permuted among copies of one prompt, assisted
    decoding only takes back what it wrote after the prompt, and a static cache has its prompt in front. Not safe are
    sliding windows that have already dropped keys, caches that keep something else than a state a position (quantised,
    recurrent), and offloaded ones.

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
        if layer.keys.shape[-2] < max(length, int(layer.get_seq_length())):
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
    """An independent cache with the same content (of the first `rows` rows); `cache` may go on being used.

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


def is_plain(cache: Any) -> bool:
    """Whether the cache is nothing but keys and values by row and position."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    plain_layers = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in plain_layers for layer in cache.layers)


def is_quantized_cache(cache: Any) -> bool:
    """Whether keys and values are only close to those that the model computed."""
    quantized = quantized_layer_type()
    return any(isinstance(layer, quantized) for layer in getattr(cache, "layers", ()))


def key_lengths(cache: Any, num_positions: int) -> dict[int, int]:
    """How many keys the layers of a cache will have for a call with `num_positions` more positions, where they keep keys."""
    from transformers.cache_utils import CacheLayerMixin

    layers = getattr(cache, "layers", ())
    return {i: num_keys(x, num_positions) for i, x in enumerate(layers) if isinstance(x, CacheLayerMixin)}


def detach_cache(cache: Any) -> None:
    """Makes everything in the cache a constant for what follows."""
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
