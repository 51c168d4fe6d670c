"""Pictures of an evaluation: curves over the retained share, and faithfulness against cost."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..checks.optional import needed_for
from ..errors import InvalidInputError
from .measures import METRICS
from .summary import Row, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASHES, _MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "v")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito: for every eye
_GREY = "0.55"


def plot_curves(summary: Summary, task: str) -> "Figure":
    """The metrics that are curves, over the share of the prompt that is kept, with bands of the confidence interval.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidInputError: No curve was measured in this task.
    """

    def draw(axis: Any, row: Row) -> None:
        style, points = _style(summary, row.method), row.curve or ()
        axis.plot(summary.pis, [point.mean for point in points], **style)
        low, high = [point.low for point in points], [point.high for point in points]
        axis.fill_between(summary.pis, low, high, color=style["color"], alpha=0.12, linewidth=0)

    metrics = [metric for metric in summary.metrics if METRICS[metric].is_curve]
    return _panels(summary, task, metrics, draw, "share of the prompt that is kept (pi)")


def plot_costs(summary: Summary, task: str, metrics: Sequence[str] | None = None) -> "Figure":
    """Metrics of each method, with intervals, against the seconds that explaining a token takes.

    Args:
        metrics: Names; None: the first three that were measured in the task.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidInputError: None of the metrics was measured in this task.
    """

    def draw(axis: Any, row: Row) -> None:
        cost, style = summary.cost(task, row.method), _style(summary, row.method)
        spread = [[row.value.mean - row.value.low], [row.value.high - row.value.mean]]
        style |= {"marker": _MARKERS[_DASHES.index(style["linestyle"])], "linestyle": "none"}
        style["markersize"] = 8 if row.method == summary.reference else 5
        axis.errorbar(cost.seconds if cost else 0, row.value.mean, yerr=spread, **style)
        axis.set_xscale("log")

    if metrics is None:
        metrics = list(dict.fromkeys(row.metric for row in summary.rows if row.task == task))[:3]
    return _panels(summary, task, metrics, draw, "seconds for each explained token")


def _panels(summary: Summary, task: str, metrics: Sequence[str], draw: Callable[[Any, Row], None], xlabel: str) -> "Figure":
    """One panel per metric that was measured in a task. Every method is drawn in each."""
    rows = {metric: [row for row in summary.rows if (row.task, row.metric) == (task, metric)] for metric in metrics}
    metrics = [metric for metric in metrics if rows[metric]]
    if not metrics:
        raise InvalidInputError(f"Nothing to plot: none of {list(rows)} was measured in the task {task!r}.")
    figure = _figure(4.4 * len(metrics) + 2.2, 4.6)
    axes: Any = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics):
        for row in rows[metric]:
            draw(axis, row)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(f"{metric} ({'higher' if METRICS[metric].higher_is_better else 'lower'} is better)")
        axis.grid(color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
    figure.suptitle(f"task: {task}" if task else "", x=0.01, ha="left", fontsize=11)
    return figure


def _style(summary: Summary, method: str) -> dict[str, Any]:
    if method == "random":
        return {"color": _GREY, "linestyle": ":", "linewidth": 1.2, "label": method}
    others = [name for name in summary.methods if name not in ("random", summary.reference)]
    position = 0 if method == summary.reference else 1 + others.index(method)
    dash, colour = divmod(position, len(_COLOURS))
    return {
        "color": _COLOURS[colour],
        "linestyle": _DASHES[dash % len(_DASHES)],
        "linewidth": 2.4 if method == summary.reference else 1.2,
        "label": method,
    }


def _figure(width: float, height: float) -> "Figure":
    with needed_for("Plots need", "matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
