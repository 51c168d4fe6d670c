"""pi-Soft-NS and pi-Soft-NC: the soft metrics at a fixed expected share of what is kept, so that all methods keep alike."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInputError
from .calibration import Calibration, calibrate
from .perturbation import Level, PerturbedText, Window
from .soft import checked_generator, comprehensiveness, soft_distances, sufficiency

PIS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def pi_soft_ns(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    pis: Sequence[float] = PIS,
    calibration: Calibration = "scale",
    generator: torch.Generator | None = None,
    num_samples: int = 4,
    level: Level = "step",
    fixed: Tensor | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Soft-NS with `r = calibrate(a, pi)`: every method keeps the expected share `pi`. Range [0, 1], higher is better.

    Source: Huang & Chan, arXiv 2601.03089. Its abstract fixes the principle, the same expected retention for all methods; the
    calibration function is `calibrate`, and others can be chosen.

    Args:
        pis: The shares.
        calibration: See `calibrate`.

    The other arguments, and errors, as for `soft_ns`.

    Returns:
        The curve over `pis`, `[R, len(pis)]` or `[M, R, len(pis)]`; `normalised_area` makes one number of it.
    """

    def measure(text: PerturbedText, window: Window, rows: Tensor, a: Tensor, source: torch.Generator) -> Tensor:
        r = torch.stack([calibrate(a, pi, text.removable[rows], method=calibration) for pi in pis])
        return sufficiency(*soft_distances(text, window, rows, r, num_samples, source))

    text = PerturbedText(model, sequences, prompt_length, attention_mask, fixed=fixed, batch_size=batch_size)
    return _curve(text, attributions, pis, generator, num_samples, level, measure)


def pi_soft_nc(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    pis: Sequence[float] = PIS,
    calibration: Calibration = "scale",
    generator: torch.Generator | None = None,
    num_samples: int = 4,
    level: Level = "step",
    fixed: Tensor | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Soft-NC with `r = 1 - calibrate(a, 1 - pi)`: every method keeps the expected share `pi`. From 0; higher is better.

    Source, arguments, return value and errors as for `pi_soft_ns`.
    """

    def measure(text: PerturbedText, window: Window, rows: Tensor, a: Tensor, source: torch.Generator) -> Tensor:
        r = torch.stack([1 - calibrate(a, 1 - pi, text.removable[rows], method=calibration) for pi in pis])
        return comprehensiveness(*soft_distances(text, window, rows, r, num_samples, source))

    text = PerturbedText(model, sequences, prompt_length, attention_mask, fixed=fixed, batch_size=batch_size)
    return _curve(text, attributions, pis, generator, num_samples, level, measure)


def normalised_area(curve: Tensor, points: Sequence[float] | Tensor = PIS) -> Tensor:
    """Area under a curve over its last dimension (trapezoids), divided by the width: the curve's mean height.

    Args:
        curve: `[..., K]`.
        points: Where it was taken, ascending, `[K]`.

    Raises:
        InvalidInputError: There are fewer than two points, they are not ascending, or not as many as the curve has.
    """
    x = torch.as_tensor(points, dtype=torch.float64, device=curve.device)
    if x.ndim != 1 or len(x) < 2 or len(x) != curve.shape[-1] or bool((x.diff() <= 0).any()):
        raise InvalidInputError(f"`points` must be {curve.shape[-1]} (at least 2) ascending numbers, got {list(points)}.")
    return torch.trapezoid(curve.double(), x) / (x[-1] - x[0])


def _curve(
    text: PerturbedText,
    attributions: Tensor,
    pis: Sequence[float],
    generator: torch.Generator | None,
    num_samples: int,
    level: Level,
    measure: Callable[[PerturbedText, Window, Tensor, Tensor, torch.Generator], Tensor],
) -> Tensor:
    text.check_attributions(attributions)
    if not len(pis):
        raise InvalidInputError("`pis` is empty; give at least one share between 0 and 1.")
    source = checked_generator(generator, num_samples)
    curve = text.mean_over_windows(
        level, lambda window, rows: measure(text, window, rows, text.scores(attributions, window, rows), source)
    )
    return curve.movedim(0, -1)
