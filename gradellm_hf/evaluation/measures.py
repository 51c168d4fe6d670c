"""The metrics by name, as an evaluation runs them."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from .. import metrics
from ..checks.arguments import choice, shares, true_or_false, whole_number
from ..errors import InvalidInputError
from ..metrics.agreement import effect_correlations
from ..metrics.calibration import Calibration
from ..metrics.options import Scope
from ..metrics.perturbation import masked_mean
from ..metrics.sources import sums_by_source
from .texts import EvaluatedText


@dataclass(frozen=True)
class Settings:
    """How an evaluation measures.

    Args:
        level: Every generated token by itself, `"step"`, or all of them together, `"sequence"`.
        num_samples: Random draws of a soft metric.
        num_portions: Portions in which `deletion` and `insertion` remove tokens; None: one token at a time.
        num_masks: Random masks of the linear datamodelling score.
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
    num_masks: int = 64
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
        numbers["num_masks"] = whole_number("num_masks", self.num_masks, 2)
        if self.num_portions is not None:
            numbers["num_portions"] = whole_number("num_portions", self.num_portions, 1, none="one token at a time")
        numbers |= {"seed": whole_number("seed", self.seed), "pis": shares("pis", self.pis)}
        if any(a >= b for a, b in pairwise(numbers["pis"])):
            raise InvalidInputError(f"`pis` must be ascending shares between 0 and 1, at least one, got {self.pis}.")
        for name, number in numbers.items():
            object.__setattr__(self, name, number)  # as Python's own, which JSON can hold

    def described(self) -> dict[str, Any]:
        """As the manifest has them: without one that the first release did not know, if it is the default."""
        known = asdict(self)
        if self.num_masks == Settings.num_masks:
            del known["num_masks"]
        return known

    def generator(self, index: int) -> torch.Generator:
        """The source of randomness of the prompt at a position."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)


Measure = Callable[[Any, EvaluatedText, Tensor, Settings, torch.Generator], Tensor]


@dataclass(frozen=True)
class Metric:
    """A metric as an evaluation runs it.

    Args:
        measure: A function of the model, a text, heatmaps `[M, 1, N, S]` of `M` methods, settings and a source of randomness.
            It returns values `[M]`, or `[M, K]` for a curve or for `K` metrics that are measured together.
        higher_is_better: False if a low value speaks for a method.
        is_curve: Whether it has one value for each of `Settings.pis`.
        needs_rationale: Whether it is defined only for texts with a human rationale.
        part: Which of the metrics that are measured together it is; None: it is measured by itself.

    Examples:
        >>> METRICS["deletion"].higher_is_better, METRICS["pi_soft_ns"].is_curve
        (False, True)
    """

    measure: Measure
    higher_is_better: bool = True
    is_curve: bool = False
    needs_rationale: bool = False
    part: int | None = None


def _perturbing(function: Callable[..., Tensor], **given: Any) -> Measure:
    """A metric that takes keywords: those given here, the settings that it has by the same name, and what the text has."""
    names = inspect.signature(function).parameters

    def measure(model: Any, text: EvaluatedText, heatmaps: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
        known = {**vars(settings), "fixed": text.fixed, "generator": generator, **given}
        keywords = {name: known[name] for name in names if name in known}
        return function(model, text.sequences, text.prompt_length, heatmaps, text.attention_mask, **keywords)[:, 0]

    return measure


def _by_source(function: Callable[..., Tensor], **given: Any) -> Measure:
    """A metric that takes sources: the text's."""

    def measure(model: Any, text: EvaluatedText, heatmaps: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
        by_source = _perturbing(function, sources=text.sources, **given)
        return by_source(model, text, heatmaps, settings, generator)

    return measure


def _agreement(function: Callable[..., Tensor], *, by_source: bool = False, **given: Any) -> Measure:
    """A metric that compares scores, of tokens or of sources, with a human rationale."""

    def measure(model: Any, text: EvaluatedText, heatmaps: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
        if text.rationale is None:
            raise InvalidInputError("The text has no human rationale to compare with.")
        scores = heatmaps[:, 0, :, : text.prompt_length].cpu()
        if settings.level == "sequence":
            scores = scores.mean(1, keepdim=True)
        marked, counts = text.rationale, ~text.fixed
        if by_source:
            num_sources = int(text.sources.max()) + 1
            of = text.sources.masked_fill(text.sources < 0, num_sources)
            marked, counts = (sums_by_source(x.long(), of, num_sources) > 0 for x in (marked, of < num_sources))
            scores = sums_by_source(scores.double(), of, num_sources)
        values = function(scores, marked, mask=counts, **given)
        return masked_mean(values, ~values.isnan())

    return measure


_CORRELATIONS = _perturbing(effect_correlations)

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
    "mas_insertion": Metric(_perturbing(metrics.insertion, removal="zero", aligned=True)),
    "mas_deletion": Metric(_perturbing(metrics.deletion, removal="zero", aligned=True), higher_is_better=False),
    "lds_source": Metric(_by_source(metrics.linear_datamodelling_score, removal="mask")),
    "lds_source_drop": Metric(_by_source(metrics.linear_datamodelling_score, removal="drop")),
    "lds_token": Metric(_perturbing(metrics.linear_datamodelling_score, removal="mask")),
    "lds_token_drop": Metric(_perturbing(metrics.linear_datamodelling_score, removal="drop")),
    "top_1_drop": Metric(_by_source(metrics.top_k_drop, k=1)),
    "top_3_drop": Metric(_by_source(metrics.top_k_drop, k=3)),
    "top_5_drop": Metric(_by_source(metrics.top_k_drop, k=5)),
    "rank_correlation": Metric(_CORRELATIONS, part=0),
    "pearson_correlation": Metric(_CORRELATIONS, part=1),
    "auc": Metric(_agreement(metrics.auc), needs_rationale=True),
    "average_precision": Metric(_agreement(metrics.average_precision), needs_rationale=True),
    "reciprocal_rank": Metric(_agreement(metrics.reciprocal_rank, by_source=True), needs_rationale=True),
    "recall_at_1": Metric(_agreement(metrics.recall_at_k, by_source=True, k=1), needs_rationale=True),
    "recall_at_3": Metric(_agreement(metrics.recall_at_k, by_source=True, k=3), needs_rationale=True),
    "recall_at_5": Metric(_agreement(metrics.recall_at_k, by_source=True, k=5), needs_rationale=True),
}
