"""Means with intervals, differences to a reference method, and cost, as data and as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..checks.arguments import string, whole_number
from ..errors import InvalidInputError
from ..metrics.bootstrap import bootstrap, checked_confidence
from ..metrics.pi_soft import normalised_area
from .measures import METRICS
from .records import jsonable
from .results import Evaluation

ALL = "all"  # the name of all tasks together
_FEWEST = 10  # by hand: with fewer prompts, resampling makes intervals that are far too narrow
_MOST_RESAMPLES = 200_000  # by hand: some seconds; the ends of wider intervals need more
_MARKS = {1: " +", -1: " -", 0: ""}  # by `Row.against_reference`


@dataclass(frozen=True)
class Mean:
    """A mean over prompts with its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A metric of a method on the prompts of a task.

    Attributes:
        value: Its mean; for a curve, the mean of the normalised area under it.
        difference: Its difference to the reference method, prompt by prompt; None for the reference itself, or without one.
        curve: The mean at each of the evaluation's shares; None for metrics without a curve.
        num_prompts: For how many prompts it is defined.
    """

    task: str
    method: str
    metric: str
    value: Mean
    difference: Mean | None
    curve: tuple[Mean, ...] | None
    num_prompts: int

    @property
    def against_reference(self) -> int:
        """1 if the method is better than the reference by more than the interval, -1 if it is worse, else 0.

        It is always 0 for fewer than ten prompts: resampling so few makes an interval that is too narrow.
        """
        if self.num_prompts < _FEWEST or self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return 0
        return 1 if (self.difference.mean > 0) == METRICS[self.metric].higher_is_better else -1


@dataclass(frozen=True)
class Cost:
    """What explaining costs: medians over prompts.

    Attributes:
        seconds: Per explained token.
        relative: The time of explaining over the time of `generate`; None if the model did not write the text.
    """

    task: str
    method: str
    seconds: float
    relative: float | None


@dataclass(frozen=True)
class Summary:
    """An evaluation in numbers.

    Attributes:
        reference: The method with which the others are compared; None if it is not among them.
        pis: Shares of the curves.
        tasks: Names. If there are several, the last is `"all"`: the prompts of all tasks together.
        num_prompts: Of each task.

    Examples:
        >>> prompts, options = ["The capital of Italy is"], {"methods": ["grad_ellm", "random"], "metrics": ["deletion"]}
        >>> summary = summarise(evaluate(GradELLM(model, tokenizer), prompts, "evaluated", **options))
        >>> summary.reference, summary.row("", "random", "deletion").num_prompts
        ('grad_ellm', 1)
        >>> print(summary.to_markdown(""))
        | method | s / token | x generate | deletion ↓ |
        ...
    """

    reference: str | None
    confidence: float
    pis: tuple[float, ...]
    tasks: tuple[str, ...]
    num_prompts: tuple[int, ...]
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    costs: tuple[Cost, ...]

    def row(self, task: str, method: str, metric: str) -> Row | None:
        """A metric of a method on a task; None if it is not defined there."""
        return self._by_key.get((task, method, metric))

    def cost(self, task: str, method: str) -> Cost | None:
        """What a method costs on a task; None if it failed on every prompt."""
        return next((cost for cost in self.costs if (cost.task, cost.method) == (task, method)), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values: dict[str, Any] = jsonable(asdict(self))
        return values

    def to_markdown(self, task: str, metrics: Sequence[str] | None = None) -> str:
        """A table of a task, with one row per method: its cost, then the mean and half the width of the interval per metric.

        The best of a column is bold. `+` and `-` mark what is better, or worse, than the reference by more than the interval.

        Args:
            task: Its name.
            metrics: Names of metrics; None: all.
        """
        wanted = self.metrics if metrics is None else metrics
        metrics = [m for m in wanted if any(self.row(task, method, m) for method in self.methods)]
        arrows = ["\u2191" if METRICS[metric].higher_is_better else "\u2193" for metric in metrics]
        header = ["method", "s / token", "x generate", *(f"{metric} {arrow}" for metric, arrow in zip(metrics, arrows))]
        lines = [header, ["---"] * len(header)]
        best = {metric: self._best(task, metric) for metric in metrics}
        for method in self.methods:
            cost = self.cost(task, method)
            seconds = "" if cost is None else f"{cost.seconds:.3f}"
            relative = "" if cost is None or cost.relative is None else f"{cost.relative:.2f}"
            cells = [_cell(self.row(task, method, metric), best[metric] == method) for metric in metrics]
            lines.append([f"`{method}`", seconds, relative, *cells])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    @cached_property
    def _by_key(self) -> dict[tuple[str, str, str], Row]:
        return {(row.task, row.method, row.metric): row for row in self.rows}

    def _best(self, task: str, metric: str) -> str | None:
        sign = 1 if METRICS[metric].higher_is_better else -1
        rows = [row for row in self.rows if (row.task, row.metric) == (task, metric)]
        return max(rows, key=lambda row: sign * row.value.mean).method if rows else None


def summarise(
    evaluation: Evaluation, *, reference: str | None = "grad_ellm", confidence: float = 0.95, comparisons: int = 1
) -> Summary:
    """Means over the prompts of each task, with bootstrap intervals; see `gradellm_hf.metrics.bootstrap`.

    Args:
        reference: The method with which the others are compared, prompt by prompt. It is ignored if it is not among them.
        confidence: Coverage of the intervals.
        comparisons: How many differences are looked at together. Their intervals are so wide that all cover the truth with this
            confidence (Bonferroni); those of the means stay.

    Raises:
        InvalidInputError: No prompt is done, `confidence` is not between 0 and 1, `comparisons` below 1, or `reference` no
            text.

    Examples:
        >>> prompts, options = ["The capital of Italy is"], {"methods": ["grad_ellm", "random"], "metrics": ["deletion"]}
        >>> summary = summarise(evaluate(GradELLM(model, tokenizer), prompts, "evaluated", **options), confidence=0.9)
        >>> [(row.method, row.metric) for row in summary.rows]
        [('grad_ellm', 'deletion'), ('random', 'deletion')]
    """
    string("reference", reference, none="no comparison")
    confidence, comparisons = checked_confidence(confidence), whole_number("comparisons", comparisons, 1)
    if not evaluation.done():
        first = next(iter(evaluation.errors.values()), "none was begun")
        raise InvalidInputError(f"No prompt was evaluated, so there is nothing to summarise: {first}")
    if reference not in evaluation.methods:
        reference = None
    tasks: list[tuple[str, str | None]] = [(task, task) for task in evaluation.tasks if evaluation.done(task)]
    if len(tasks) > 1 and ALL not in evaluation.tasks:
        tasks.append((ALL, None))
    rows: list[Row] = []
    costs: list[Cost] = []
    for name, task in tasks:
        for metric in evaluation.metrics:
            rows += _rows(name, metric, evaluation.values(metric, task), evaluation, reference, confidence, comparisons)
        for method in evaluation.methods:
            seconds, relative = evaluation.seconds(method, task), evaluation.relative_seconds(method, task)
            if len(seconds):
                costs.append(Cost(name, method, float(seconds.median()), float(relative.median()) if len(relative) else None))
    return Summary(
        reference,
        confidence,
        evaluation.settings.pis,
        tuple(name for name, _ in tasks),
        tuple(len(evaluation.done(task)) for _, task in tasks),
        tuple(evaluation.methods),
        tuple(evaluation.metrics),
        tuple(rows),
        tuple(costs),
    )


def _rows(
    task: str,
    metric: str,
    values: Tensor,
    evaluation: Evaluation,
    reference: str | None,
    confidence: float,
    comparisons: int,
) -> Iterator[Row]:
    curves: Sequence[tuple[Mean, ...] | None] = [None] * len(values)
    if METRICS[metric].is_curve:
        pis = evaluation.settings.pis
        curves = [tuple(_means(values.transpose(1, 2)[m], confidence)) for m in range(len(values))]
        values = normalised_area(values, pis) if len(pis) > 1 else values[..., 0]
    means = _means(values, confidence)
    differences: Sequence[Mean | None] = [None] * len(values)
    if reference is not None:
        row = evaluation.methods.index(reference)
        differences = _means(values - values[row], 1 - (1 - confidence) / comparisons, comparisons)
    for m, method in enumerate(evaluation.methods):
        num_prompts = int((~values[m].isnan()).sum())
        if num_prompts:
            difference = None if method == reference else differences[m]
            yield Row(task, method, metric, means[m], difference, curves[m], num_prompts)


def _means(values: Tensor, confidence: float, comparisons: int = 1) -> list[Mean]:
    """The mean of each row of `values [M, R]`, with its interval."""
    found = bootstrap(values, confidence=confidence, num_resamples=min(10_000 * comparisons, _MOST_RESAMPLES))
    return [Mean(*numbers) for numbers in torch.stack(found).T.tolist()]


def _cell(row: Row | None, is_best: bool) -> str:
    if row is None:
        return ""
    text = f"{row.value.mean:.3f}"
    text = f"**{text}**" if is_best else text
    return f"{text} ± {(row.value.high - row.value.low) / 2:.3f}{_MARKS[row.against_reference]}"
