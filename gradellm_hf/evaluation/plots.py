"""Pictures of an evaluation: curves over the retained share, and faithfulness against cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import GradELLMError, InvalidInputError
from .measures import METRICS
from .summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASHES, _MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "v")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito: for every eye
_GREY = "0.55"


def plot_curves(summary: Summary, task: str) -> "Figure":
    """The metrics that are curves, over the share of the prompt that is kept, with bands of the confidence interval.

    Raises:
        GradELLMError: matplotlib is not installed.
        InvalidInputError: No curve was measured in this task.
    """
    metrics = [metric for metric in summary.metrics if METRICS[metric].is_curve]
    curves = {metric: _present(summary, task, metric) for metric in metrics}
    if not any(curves.values()):
        raise InvalidInputError(f"No curve was measured in the task {task!r}.")
    figure = _figure(4.4 * len(metrics) + 2.2, 4.6)
    axes: Any = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics):
        for method in curves[metric]:
            row = summary.row(task, method, metric)
            points: Any = row.curve if row is not None else ()
            style = _style(summary, method)
            axis.plot(summary.pis, [point.mean for point in points], **style)
            low, high = [point.low for point in points], [point.high for point in points]
            axis.fill_between(summary.pis, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axis.set_xlabel("share of the prompt that is kept (pi)")
        axis.set_ylabel(_label(metric))
        _tidy(axis)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
    figure.suptitle(_title(task), x=0.01, ha="left", fontsize=11)
    return figure


def plot_costs(summary: Summary, task: str, metrics: Sequence[str] | None = None) -> "Figure":
    """Metrics of each method, with intervals, against the seconds that explaining a token takes.

    Args:
        metrics: Names; None: the first three of the evaluation's.

    Raises:
        GradELLMError: matplotlib is not installed.
        InvalidInputError: None of the metrics was measured in this task.
    """
    metrics = [metric for metric in (metrics or summary.metrics[:3]) if _present(summary, task, metric)]
    if not metrics:
        raise InvalidInputError(f"None of the metrics was measured in the task {task!r}.")
    figure = _figure(4.4 * len(metrics) + 2.2, 4.6)
    axes: Any = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics):
        for method in _present(summary, task, metric):
            row, cost = summary.row(task, method, metric), summary.cost(task, method)
            if row is None or cost is None:
                continue
            spread = [[row.value.mean - row.value.low], [row.value.high - row.value.mean]]
            style = _style(summary, method)
            marker = _MARKERS[_DASHES.index(style["linestyle"])]
            size = 8 if method == summary.reference else 5
            axis.errorbar(
                cost.seconds, row.value.mean, yerr=spread, marker=marker, markersize=size, **{**style, "linestyle": "none"}
            )
        axis.set_xscale("log")
        axis.set_xlabel("seconds for each explained token")
        axis.set_ylabel(_label(metric))
        _tidy(axis)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
    figure.suptitle(_title(task), x=0.01, ha="left", fontsize=11)
    return figure


def _present(summary: Summary, task: str, metric: str) -> list[str]:
    return [method for method in summary.methods if summary.row(task, method, metric) is not None]


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


def _label(metric: str) -> str:
    return f"{metric} ({'higher' if METRICS[metric].higher_is_better else 'lower'} is better)"


def _title(task: str) -> str:
    return f"task: {task}" if task else ""


def _tidy(axis: Any) -> None:
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.tick_params(labelsize=8)


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GradELLMError('Plots need matplotlib, which is not installed: pip install "gradellm-hf[plots]"') from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
