"""The metrics by name, as an evaluation runs them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from .. import metrics
from ..checks.arguments import choice, shares, true_or_false, whole_number
from ..errors import InvalidInputError
from ..metrics.calibration import Calibration
from ..metrics.options import Scope
from ..metrics.perturbation import masked_mean
from .texts import EvaluatedText


@dataclass(frozen=True)
class Settings:
    """How an evaluation measures.

    Args:
        level: Every generated token by itself, `"step"`, or all of them together, `"sequence"`.
        num_samples: Random draws of a soft metric.
        num_portions: Portions in which `deletion` and `insertion` remove tokens; None: one token at a time.
        pis: Shares of the pi-Soft curves.
        calibration: See `gradellm_hf.metrics.calibrate`.
        perturb_special_tokens: Whether special tokens (template markers, say) are perturbed and compared like others.
        batch_size: Perturbed texts per forward pass.
        seed: Of all random draws. Each prompt has draws of its own, which are the same for every method.

    Raises:
        InvalidInputError: An option is unknown or out of range.

    Examples:
        >>> Settings(level="sequence", seed=1).pis
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """

    level: Scope = "step"
    num_samples: int = 1
    num_portions: int | None = None
    pis: tuple[float, ...] = metrics.PIS
    calibration: Calibration = "scale"
    perturb_special_tokens: bool = False
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        choice("level", self.level, get_args(Scope))
        choice("calibration", self.calibration, get_args(Calibration))
        true_or_false("perturb_special_tokens", self.perturb_special_tokens)
        numbers: dict[str, Any] = {name: whole_number(name, getattr(self, name), 1) for name in ("num_samples", "batch_size")}
        if self.num_portions is not None:
            numbers["num_portions"] = whole_number("num_portions", self.num_portions, 1, none="one token at a time")
        numbers |= {"seed": whole_number("seed", self.seed), "pis": shares("pis", self.pis)}
        if any(a >= b for a, b in pairwise(numbers["pis"])):
            raise InvalidInputError(f"`pis` must be ascending shares between 0 and 1, at least one, got {self.pis}.")
        for name, number in numbers.items():
            object.__setattr__(self, name, number)  # as Python's own, which JSON can hold

    def generator(self, index: int) -> torch.Generator:
        """The source of randomness of the prompt at a position."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)


Measure = Callable[[Any, EvaluatedText, Tensor, Settings, torch.Generator], Tensor]


@dataclass(frozen=True)
class Metric:
    """A metric as an evaluation runs it.

    Args:
        measure: A function of the model, a text, heatmaps `[M, 1, N, S]` of `M` methods, settings and a source of randomness.
            It returns values `[M]`, or `[M, K]` for a curve.
        higher_is_better: False if a low value speaks for a method.
        is_curve: Whether it has one value for each of `Settings.pis`.
        needs_rationale: Whether it is defined only for texts with a human rationale.

    Examples:
        >>> METRICS["deletion"].higher_is_better, METRICS["pi_soft_ns"].is_curve
        (False, True)
    """

    measure: Measure
    higher_is_better: bool = True
    is_curve: bool = False
    needs_rationale: bool = False


def _perturbing(function: Callable[..., Tensor], **given: Any) -> Measure:
    """A metric that takes keywords: those given here, the settings that it has by the same name, and what the text has."""
    names = inspect.signature(function).parameters

    def measure(model: Any, text: EvaluatedText, heatmaps: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
        known = {**vars(settings), "fixed": text.fixed, "generator": generator, **given}
        keywords = {name: known[name] for name in names if name in known}
        return function(model, text.sequences, text.prompt_length, heatmaps, text.attention_mask, **keywords)[:, 0]

    return measure


def _agreement(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Measure:
    """A metric that compares scores with a human rationale."""

    def measure(model: Any, text: EvaluatedText, heatmaps: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
        if text.rationale is None:
            raise InvalidInputError("The text has no human rationale to compare with.")
        scores = heatmaps[:, 0, :, : text.prompt_length]
        if settings.level == "sequence":
            scores = scores.mean(1, keepdim=True)
        values = function(scores, text.rationale.to(scores.device), ~text.fixed.to(scores.device))
        return masked_mean(values, ~values.isnan())

    return measure


METRICS: dict[str, Metric] = {
    "pi_soft_ns": Metric(_perturbing(metrics.pi_soft_ns), is_curve=True),
    "pi_soft_nc": Metric(_perturbing(metrics.pi_soft_nc), is_curve=True),
    "soft_ns": Metric(_perturbing(metrics.soft_ns)),
    "soft_nc": Metric(_perturbing(metrics.soft_nc)),
    "insertion": Metric(_perturbing(metrics.insertion, removal="zero")),
    "insertion_mask": Metric(_perturbing(metrics.insertion, removal="mask")),
    "insertion_drop": Metric(_perturbing(metrics.insertion, removal="drop")),
    "deletion": Metric(_perturbing(metrics.deletion, removal="zero"), higher_is_better=False),
    "deletion_mask": Metric(_perturbing(metrics.deletion, removal="mask"), higher_is_better=False),
    "deletion_drop": Metric(_perturbing(metrics.deletion, removal="drop"), higher_is_better=False),
    "rank_correlation": Metric(_perturbing(metrics.rank_correlation)),
    "auc": Metric(_agreement(metrics.auc), needs_rationale=True),
    "average_precision": Metric(_agreement(metrics.average_precision), needs_rationale=True),
}
