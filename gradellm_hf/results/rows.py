"""Rows of explained steps, alone as in files, and among rows of zeros for all other steps."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def places(flags: Iterable[bool]) -> list[int]:
    """Where these are true."""
    return [place for place, flag in enumerate(flags) if flag]


def among_zeros(x: Tensor, rows: Sequence[int], num_rows: int, dim: int = -2) -> Tensor:
    """These rows at their places. On a CPU, the zeros between them take no memory until they are written to.

    Args:
        x: What the rows are, along `dim`.
        rows: Their places, ascending.
        num_rows: How many there are with the zeros.
        dim: Negative.
    """
    if len(rows) == num_rows:
        return x
    shape = [*x.shape]
    shape[dim] = num_rows
    return x.new_zeros(shape).index_copy_(dim, _index(rows, x), x)


def without_zeros(x: Tensor, rows: Sequence[int], dim: int = -2) -> Tensor:
    """These rows alone; the tensor itself, if they are all. See `among_zeros`."""
    return x if len(rows) == x.shape[dim] else x.index_select(dim, _index(rows, x))


def _index(rows: Sequence[int], x: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.long, device=x.device)
