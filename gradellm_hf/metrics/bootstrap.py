"""Confidence intervals by resampling prompts."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks.arguments import checked_generator, real_number, tensor, whole_number
from ..errors import InvalidInputError

_ROWS = 2**14  # resamples that are looked at together; chosen by hand


class Interval(NamedTuple):
    """A mean with its confidence interval. Each has the shape of the values without their last dimension.

    Examples:
        >>> mean, low, high = bootstrap(torch.tensor([0.2, 0.4, 0.6]))
        >>> bool(low <= mean <= high)
        True
    """

    mean: Tensor
    low: Tensor
    high: Tensor


def bootstrap(
    values: Tensor, *, confidence: float = 0.95, num_resamples: int = 10_000, generator: torch.Generator | None = None
) -> Interval:
    """Percentile bootstrap of the mean over prompts. The resamples are the same for all leading dimensions.

    For the difference of two methods, resample the differences of their values: `bootstrap(a - b)`.

    Source: Efron 1979 (Annals of Statistics 7), percentile interval.

    Args:
        values: One per prompt, `[..., R]`. NaN (not defined) is left out.
        confidence: Coverage of the interval, between 0 and 1.
        num_resamples: How often `R` prompts are drawn with replacement.
        generator: Source of randomness, on the CPU; None: one with seed 0.

    Returns:
        Mean, low and high end of the interval, each `[...]`, float64.

    Raises:
        InvalidInputError: There is no prompt, or an argument is out of range.

    Examples:
        >>> a, b = torch.tensor([0.5, 0.7, 0.9, 0.8]), torch.tensor([0.4, 0.6, 0.7, 0.8])
        >>> bootstrap(a - b).mean
        tensor(0.1000, dtype=torch.float64)
    """
    if tensor("values", values).ndim == 0 or values.shape[-1] == 0:
        raise InvalidInputError(f"`values` must hold one number per prompt, [..., R], got shape {list(values.shape)}.")
    confidence = checked_confidence(confidence)
    num_resamples = whole_number("num_resamples", num_resamples, 1)
    values = values.double()
    if bool(values.isinf().any()):
        raise InvalidInputError("`values` holds infinite numbers, which have no mean.")
    rows = values.shape[-1]
    drawn = torch.randint(rows, (num_resamples, rows), generator=checked_generator(generator)).to(values.device)
    flat = values.reshape(-1, rows)
    known, numbers = (~flat.isnan()).double(), flat.nan_to_num()
    means = values.new_empty(len(flat), num_resamples)
    for part, kept in zip(drawn.split(_ROWS), means.split(_ROWS, dim=-1)):
        times = values.new_zeros(len(part), rows).scatter_add_(1, part, values.new_ones(part.shape))  # that each was drawn
        kept.copy_((numbers @ times.T) / (known @ times.T))
    means = means.view(*values.shape[:-1], num_resamples)
    tail = (1 - confidence) / 2
    low, high = torch.nanquantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype, device=means.device), dim=-1)
    return Interval(values.nanmean(-1), low, high)


def checked_confidence(confidence: float) -> float:
    """Raises InvalidInputError unless it lies between 0 and 1."""
    return real_number("confidence", confidence, "a number between 0 and 1, neither of them", 0, 1, open_ends=True)
