"""Ranks with ties, and Spearman's correlation."""

from typing import Any

import torch
from torch import Tensor

from ..checks.arguments import binary_mask, tensor
from ..errors import InvalidInputError


def average_ranks(x: Tensor, mask: Tensor) -> Tensor:
    """Ranks from 1 up of those elements of the last dimension that `mask` has, in float64. Ties share the mean of their ranks.
    The others get 0.
    """
    mask = mask.broadcast_to(x.shape)
    lowest = x.double().masked_fill(~mask, -torch.inf).contiguous()
    ascending = lowest.sort(-1).values.contiguous()
    below = torch.searchsorted(ascending, lowest)
    up_to = torch.searchsorted(ascending, lowest, right=True)
    ranks = (below + up_to + 1) / 2 - (~mask).sum(-1, keepdim=True)
    return ranks.double().masked_fill(~mask, 0)


def descending_ranks(scores: Tensor, mask: Tensor, ties: Tensor) -> Tensor:
    """0 for the element of the last dimension with the highest score, and so on; equal scores in the order of `ties`.

    Elements that `mask` has not come last.
    """
    shuffled = ties.argsort(-1).expand(scores.shape)
    candidates = scores.masked_fill(~mask, -torch.inf).gather(-1, shuffled)
    order = shuffled.gather(-1, candidates.argsort(dim=-1, descending=True, stable=True))
    return order.argsort(-1)


def spearman(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation over the last dimension; between -1 and 1, NaN if either is constant.

    It is Pearson's correlation of the ranks. Ties share the mean of their ranks.

    Args:
        x, y: `[..., K]`, broadcast to each other.
        mask: Which elements count, broadcast to the same shape; None: all.

    Returns:
        `[...]`, float64.

    Raises:
        InvalidInputError: Shapes do not fit, an element is NaN, which has no rank, or `mask` holds something other than 0 and
            1.

    Examples:
        >>> spearman(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([1.0, 7.0, 5.0]))
        tensor(0.5000, dtype=torch.float64)
    """
    for name, values in (("x", x), ("y", y)):
        check_no_nan(name, values)
    try:
        x, y = torch.broadcast_tensors(x, y)
    except RuntimeError as error:
        raise InvalidInputError(f"`x` {list(x.shape)} and `y` {list(y.shape)} must broadcast to each other.") from error
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else binary_mask("mask", mask, x.shape)
    return pearson(average_ranks(x, mask), average_ranks(y, mask), mask)


def pearson(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Pearson's correlation over those elements of the last dimension that `mask` has; NaN if `x` or `y` is constant there.

    All are of one shape, `[..., K]`; the result is `[...]`.
    """
    count = mask.sum(-1, keepdim=True)
    kept = (z.masked_fill(~mask, 0) for z in (x, y))
    u, v = ((z - z.sum(-1, keepdim=True) / count).masked_fill(~mask, 0) for z in kept)
    correlation: Tensor = (u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1))
    return correlation.clamp(-1, 1)


def check_no_nan(name: str, values: Any) -> None:
    """Raises InvalidInputError unless it is a tensor without NaN, which has no rank among the others."""
    if bool(tensor(name, values).isnan().any()):
        raise InvalidInputError(f"`{name}` holds NaN, which has no rank among the others.")
