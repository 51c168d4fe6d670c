"""pi-Soft-NS and pi-Soft-NC: the soft metrics with a fixed expected share of what is kept, the same for all methods."""

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks.arguments import choice, is_list, real_number, shares, tensor
from ..errors import InvalidInputError
from .calibration import Calibration, calibrate
from .measured import MeasuredText
from .options import MetricOptions, SamplingKeywords, takes_options
from .perturbation import Window
from .soft import comprehensiveness, soft_distances, sufficiency

PIS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@takes_options
def pi_soft_ns(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    pis: Sequence[float] = PIS,
    calibration: Calibration = "scale",
    **options: Unpack[SamplingKeywords],
) -> Tensor:
    """Soft-NS with `r = calibrate(a, pi)`: every method keeps the expected share `pi`. Range [0, 1], higher is better.

    Source: Huang & Chan, arXiv 2601.03089. Its abstract states the principle, the same expected retention for all methods. How
    scores are calibrated to it is a choice: see `calibrate`.

    Args:
        pis: The shares.
        calibration: See `calibrate`.

    The other arguments are as for `soft_ns`.

    Returns:
        The curve over `pis`, `[R, len(pis)]` or `[M, R, len(pis)]`; `normalised_area` makes one number of it.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `soft_ns`, or a share is not between 0 and 1.

    Examples:
        >>> curve = pi_soft_ns(model, out.sequences, out.prompt_length, out.attributions, pis=[0.2, 0.5, 0.8])
        >>> curve.shape, normalised_area(curve, [0.2, 0.5, 0.8]).shape  # [R, len(pis)] and [R]
        (torch.Size([1, 3]), torch.Size([1]))
    """
    pis, calibration = shares("pis", pis), choice("calibration", calibration, get_args(Calibration))
    text = MeasuredText(model, sequences, prompt_length, attributions, attention_mask, MetricOptions(**options))

    def measure(window: Window, rows: Tensor, scores: Tensor) -> Tensor:
        r = torch.stack([calibrate(scores, pi, text.removable[rows], method=calibration) for pi in pis])
        return sufficiency(*soft_distances(text, window, rows, r))

    return text.mean_over_windows(measure).movedim(0, -1)


@takes_options
def pi_soft_nc(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    pis: Sequence[float] = PIS,
    calibration: Calibration = "scale",
    **options: Unpack[SamplingKeywords],
) -> Tensor:
    """Soft-NC with `r = 1 - calibrate(a, 1 - pi)`: every method keeps the expected share `pi`. From 0; higher is better.

    Source, arguments and return value, `[R, len(pis)]` or `[M, R, len(pis)]`, as for `pi_soft_ns`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `pi_soft_ns`.

    Examples:
        >>> pi_soft_nc(model, out.sequences, out.prompt_length, out.attributions, calibration="rank").shape  # [R, len(PIS)]
        torch.Size([1, 9])
    """
    pis, calibration = shares("pis", pis), choice("calibration", calibration, get_args(Calibration))
    text = MeasuredText(model, sequences, prompt_length, attributions, attention_mask, MetricOptions(**options))

    def measure(window: Window, rows: Tensor, scores: Tensor) -> Tensor:
        r = torch.stack([1 - calibrate(scores, 1 - pi, text.removable[rows], method=calibration) for pi in pis])
        return comprehensiveness(*soft_distances(text, window, rows, r))

    return text.mean_over_windows(measure).movedim(0, -1)


def normalised_area(curve: Tensor, points: Sequence[float] | Tensor = PIS) -> Tensor:
    """Area under a curve over its last dimension (trapezoids), divided by the width: the curve's mean height.

    Args:
        curve: `[..., K]`.
        points: The positions of its values, ascending, `[K]`.

    Returns:
        `[...]`, float64.

    Raises:
        InvalidInputError: There are fewer than two points, they are not ascending, or not as many as the curve has.

    Examples:
        >>> normalised_area(torch.tensor([0.0, 1.0, 1.0]), [0.0, 0.5, 1.0])
        tensor(0.7500, dtype=torch.float64)
    """
    if tensor("curve", curve).ndim == 0:
        raise InvalidInputError("`curve` must have a dimension of points, [..., K], got a single number.")
    expected = f"{curve.shape[-1]} (at least 2) ascending numbers"
    given = points.tolist() if hasattr(points, "tolist") else points
    if not is_list(given) or not 2 <= len(given) == curve.shape[-1]:
        raise InvalidInputError(f"`points` must be {expected}, got {given!r}.")
    numbers = [real_number("points", point, expected, -math.inf) for point in given]
    x = torch.tensor(numbers, dtype=torch.float64, device=curve.device)
    if bool((x.diff() <= 0).any()):
        raise InvalidInputError(f"`points` must be {expected}, got {given!r}.")
    return torch.trapezoid(curve.double(), x) / (x[-1] - x[0])
