"""From scores to retention probabilities: the share of each position that is kept."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks.arguments import binary_mask, choice, real_number, tensor
from ..errors import InvalidInputError
from .ranks import average_ranks

Calibration = Literal["scale", "power", "rank"]


def minmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores scaled to [0, 1] over those elements of the last dimension that `mask` has; 0 for others, and if all are equal."""
    low = scores.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    high = scores.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    spread = high - low
    return torch.where(mask & (spread > 0), (scores - low) / spread.masked_fill(spread <= 0, 1), 0)


def calibrate(scores: Tensor, pi: float, mask: Tensor | None = None, *, method: Calibration = "scale") -> Tensor:
    """Retention probabilities `r_i` in [0, 1] that grow with the scores and whose mean is exactly `pi`.

    - `"scale"`: `r_i = min(1, s a_i)`. The scale `s` has a closed form: if the `j` largest are cut off at 1, then
      `s = (pi K - j) / (sum of the others)`. `j` is the smallest number for which none of the others exceeds 1.
    - `"power"`: `r_i = (a_i / max a)^g`. The exponent `g > 0` is found by bisection, to the precision of float64.
    - `"rank"`: `"scale"` of the ranks of the positive scores. Ties share the mean of their ranks.

    Negative scores count as zeros. If too few scores are positive to reach `pi`, these get 1, and the rest of the mass is
    spread evenly over the zeros. The result does not depend on the scale of the scores.

    Source: fixed expected retention is the principle of pi-Soft-NS/NC (Huang & Chan, arXiv 2601.03089).

    Args:
        scores: `[..., K]`.
        pi: The mean, between 0 and 1.
        mask: Which positions count, broadcast to `[..., K]`; None: all. The others get 0, and do not enter the mean.
        method: How it is calibrated.

    Returns:
        `[..., K]`, float64.

    Raises:
        InvalidInputError: `pi` is not between 0 and 1, a score is not finite, or the method is unknown.

    Examples:
        >>> calibrate(torch.tensor([4.0, 2.0, 1.0, 1.0]), pi=0.5)  # the largest is cut off at 1
        tensor([1.0000, 0.5000, 0.2500, 0.2500], dtype=torch.float64)
    """
    pi = real_number("pi", pi, "a share between 0 and 1", 0, 1)
    choice("method", method, get_args(Calibration))
    if not tensor("scores", scores).isfinite().all():
        raise InvalidInputError("`scores` holds values that are not finite.")
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else binary_mask("mask", mask, scores.shape)
    a = scores.double().clamp_min(0).masked_fill(~mask, 0)
    largest = a.amax(-1, keepdim=True)
    a = a / largest.masked_fill(largest == 0, 1)
    if method == "rank":
        a = average_ranks(a, a > 0)
    positive = a > 0
    count, num_positive = mask.sum(-1, keepdim=True), positive.sum(-1, keepdim=True)
    mass = pi * count.double()
    spread = (mass - num_positive) / (count - num_positive).clamp_min(1)
    too_few = torch.where(positive, 1, spread)
    solved = _power(a, mass) if method == "power" else _scaled(a, mass)
    return torch.where(num_positive <= mass, too_few, solved).masked_fill(~mask, 0).clamp(0, 1)


def _scaled(a: Tensor, mass: Tensor) -> Tensor:
    """`min(1, s a)` with the sum `mass`, which is smaller than the number of positive scores."""
    descending = a.sort(-1, descending=True).values
    rest = descending.flip(-1).cumsum(-1).flip(-1)  # rest[j]: the sum of all but the j largest
    cut_off = torch.arange(a.shape[-1], device=a.device)
    scale = (mass - cut_off) / rest.masked_fill(rest == 0, 1)
    fits = (scale * descending <= 1) & (rest > 0)
    first = fits.int().argmax(-1, keepdim=True)
    return (scale.gather(-1, first) * a).clamp(max=1)


def _power(a: Tensor, mass: Tensor) -> Tensor:
    """`a^g` with the sum `mass`. If the largest alone are more than that, they share it."""
    log_a = a.clamp_min(torch.finfo(a.dtype).tiny).log()
    top = a == 1
    num_top = top.sum(-1, keepdim=True)

    def powers(log_exponent: Tensor) -> Tensor:
        return torch.where(a > 0, (log_exponent.exp() * log_a).exp(), 0)

    found = powers(
        _bisect(lambda x: powers(x).sum(-1, keepdim=True) > mass, torch.full_like(mass, -40), torch.full_like(mass, 40))
    )
    return torch.where(num_top >= mass, torch.where(top, mass / num_top.clamp_min(1), 0), found)


def _bisect(below: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    for _ in range(80):
        middle = (low + high) / 2
        is_below = below(middle)
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return (low + high) / 2
