"""`python -m benchmarks.faithfulness.report`: tables and pictures of what `benchmarks.faithfulness.run` found."""

import argparse
import datetime
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import transformers

import gradellm_hf
from gradellm_hf.checks.files import write_atomically
from gradellm_hf.evaluation import Evaluation, Summary, load_evaluation, summarise
from gradellm_hf.evaluation.measures import METRICS
from gradellm_hf.evaluation.plots import plot_costs, plot_curves
from gradellm_hf.evaluation.summary import ALL, Mean
from gradellm_hf.metrics import bootstrap
from gradellm_hf.visualization.plot import write_figure

from .run import DEFAULT_OUTPUT, KNOWN_SOURCE, PARTS, PRIMARY, REFERENCE
from .variants import VARIANTS

HERE = Path(__file__).parent
PICTURES = HERE.parent.parent / "docs" / "images"
_ABLATIONS = {"ablation": "prompts to tune on", "ablation_report": "reported prompts, looked at once"}
RIVALS = (REFERENCE, "attention_mean", "at2")  # that head weights are to be better than
_FEWEST = 5  # prompts of a task with a table of its own; those with known sources are single cells of a grid
_HEADER = """# Faithfulness: results

Written by `python -m benchmarks.faithfulness.report` on {date}: gradellm_hf {version}, torch {torch}, Transformers
{transformers}, Python {python}. All in float32.

Each cell is the mean over prompts and half the width of its 95 % interval (bootstrap over prompts). The best of a column is
bold. `+` and `-`: better, or worse, than `{reference}`, prompt by prompt, by more than an interval that is corrected
(Bonferroni) for the number of comparisons in a part: methods times primary metrics. These were named before the run: {primary}.
`s / token`: median seconds for each explained token; `x generate`: median time over that of `generate`, prompt included.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the results (default: %(default)s)")
    options = parser.parse_args()
    evaluations = {
        (family.name, part): load_evaluation(family / part)
        for family in sorted(options.output.iterdir())
        for part in PARTS
        if (family / part / "manifest.json").exists()
    }
    summaries = {(family, part): summarised(part, evaluation) for (family, part), evaluation in evaluations.items()}
    text = [_header(), _gains(evaluations), *(_section(family, part, summary) for (family, part), summary in summaries.items())]
    write_atomically(HERE / "RESULTS.md", "\n".join(text).encode())
    write_atomically(HERE / "results.jsonl", "".join(_json_lines(summaries)).encode())
    PICTURES.mkdir(exist_ok=True)
    for (family, part), summary in summaries.items():
        task, name = summary.tasks[-1], f"{family}_{part}"
        if set(PRIMARY) <= set(summary.metrics):
            write_figure(plot_costs(summary, task, PRIMARY), PICTURES / f"faithfulness_costs_{name}.png", dpi=90)
        if any(METRICS[metric].is_curve for metric in summary.metrics):
            write_figure(plot_curves(summary, task), PICTURES / f"faithfulness_curves_{name}.png", dpi=90)


def summarised(part: str, evaluation: Evaluation) -> Summary:
    """A part in numbers, the differences corrected for how many of them its tables show."""
    reference = "relu_per_head" if part in _ABLATIONS else REFERENCE
    metrics = [metric for metric in evaluation.metrics if metric in PRIMARY] or evaluation.metrics
    comparisons = (len(evaluation.methods) - 1) * len(metrics)
    return summarise(evaluation, reference=reference, comparisons=comparisons)


def _header() -> str:
    return _HEADER.format(
        date=datetime.date.today().isoformat(),
        version=gradellm_hf.__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        reference=REFERENCE,
        primary=", ".join(f"`{metric}`" for metric in PRIMARY),
    )


def _gains(evaluations: Mapping[tuple[str, str], Evaluation]) -> str:
    """What head weights add, prompt by prompt, to the default, to averaged attention and to AT2's weights."""
    comparisons = len(RIVALS) * len(PRIMARY)
    compared = {
        name: evaluation
        for name, evaluation in evaluations.items()
        if {"calibrated", *RIVALS} <= set(evaluation.methods) and not PARTS[name[1]].many_passes  # these have few prompts
    }
    lines = [
        "## What head weights add\n",
        f"`calibrated` less others, prompt by prompt; intervals are for {comparisons} comparisons, bold if they leave out 0.\n",
        "| metric | | " + " | ".join(f"`{rival}`" for rival in RIVALS) + " |",
        "|---" * (2 + len(RIVALS)) + "|",
    ]
    for metric in (*PRIMARY, "pearson_correlation"):
        for (family, part), evaluation in compared.items():
            if {metric, *PRIMARY} <= set(evaluation.metrics):
                values, row = evaluation.values(metric), evaluation.methods.index
                gains = values[row("calibrated")] - values[[row(rival) for rival in RIVALS]]
                found = bootstrap(gains, confidence=1 - 0.05 / comparisons, num_resamples=10_000 * comparisons)
                cells = [_with_interval(Mean(*numbers)) for numbers in torch.stack(found).T.tolist()]
                lines.append(f"| {metric} | {family}, {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _section(family: str, part: str, summary: Summary) -> str:
    if part in _ABLATIONS:
        return _ablation(family, _ABLATIONS[part], summary)
    rest = [metric for metric in summary.metrics if metric not in PRIMARY]
    tables = [f"## {family}: {part}\n"]
    for task, count in zip(summary.tasks, summary.num_prompts):
        if count < _FEWEST and task != summary.tasks[-1] and PARTS[part].metrics is not KNOWN_SOURCE:
            continue
        tables.append(
            f"### {'all together' if task == ALL else task or part}: {count} {'prompt' if count == 1 else 'prompts'}\n"
        )
        primary = [metric for metric in PRIMARY if metric in summary.metrics]
        tables += [summary.to_markdown(task, metrics) + "\n" for metrics in (primary, rest) if metrics]
    return "\n".join(tables)


def _ablation(family: str, prompts: str, summary: Summary) -> str:
    lines = [
        f"## {family}: ablation, {summary.num_prompts[-1]} {prompts}\n",
        "Difference to `relu_per_head`, the default, with its corrected interval; bold if the interval leaves out 0.\n",
        "| variant | what | " + " | ".join(summary.metrics) + " |",
        "|---" * (2 + len(summary.metrics)) + "|",
        *_ablation_rows(summary),
    ]
    return "\n".join(lines) + "\n"


def _ablation_rows(summary: Summary) -> Iterator[str]:
    for method in summary.methods:
        rows = [summary.row(summary.tasks[-1], method, metric) for metric in summary.metrics]
        cells = ["" if row is None else _difference(row.value, row.difference) for row in rows]
        yield f"| `{method}` | {VARIANTS[method].description} | " + " | ".join(cells) + " |"


def _difference(value: Mean, difference: Mean | None) -> str:
    return f"{value.mean:.3f}" if difference is None else _with_interval(difference)


def _with_interval(difference: Mean) -> str:
    text = f"{difference.mean:+.3f}"
    clear = not difference.low <= 0 <= difference.high
    return f"{f'**{text}**' if clear else text} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _json_lines(summaries: Mapping[tuple[str, str], Summary]) -> Iterator[str]:
    """Every mean and every cost, one per line."""
    for (family, part), summary in summaries.items():
        data = json.loads(json.dumps(summary.to_dict()), parse_float=lambda number: round(float(number), 5))
        for item in (*data["rows"], *data["costs"]):
            yield json.dumps({"family": family, "part": part, **item}) + "\n"


if __name__ == "__main__":
    main()
