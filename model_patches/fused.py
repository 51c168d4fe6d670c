"""Projections that compute query, key and value at once: how to split their output. Results are flattened, `[R, N, C]`."""

from typing import Any

from torch import Tensor, nn


def side_by_side(output: Tensor, attention: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """All queries, then all keys, then all values, in equal widths."""
    query, key, value = output.chunk(3, dim=-1)
    return query, key, value


def head_by_head(output: Tensor, attention: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Head after head, each with its query, key and value; the module knows its `head_dim` or `head_size`."""
    head_dim = getattr(attention, "head_dim", None) or attention.head_size
    query, key, value = output.unflatten(-1, (-1, 3, head_dim)).unbind(-2)
    return query.flatten(-2), key.flatten(-2), value.flatten(-2)


def group_by_group(output: Tensor, attention: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Group after group of heads, each with its queries, then the key and the value that they share.

    How many groups there are follows from the width; the module knows `num_heads` and `head_dim`.
    """
    module: Any = attention
    groups = (output.shape[-1] // module.head_dim - module.num_heads) // 2
    grouped = output.unflatten(-1, (groups, -1, module.head_dim))
    query, key, value = grouped[..., :-2, :], grouped[..., -2, :], grouped[..., -1, :]
    return query.flatten(-3), key.flatten(-2), value.flatten(-2)


def side_by_side_grouped(output: Tensor, attention: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """All queries, then fewer keys and values; the module's config knows the number of heads."""
    config: Any = attention.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    head_dim = output.shape[-1] // (heads + 2 * groups)
    query, key, value = output.split([heads * head_dim, groups * head_dim, groups * head_dim], dim=-1)
    return query, key, value
