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
from gradellm_hf.evaluation import Evaluation, Summary, load_evaluation, merge, summarise
from gradellm_hf.evaluation.plots import plot_costs, plot_curves
from gradellm_hf.evaluation.summary import ALL, Mean
from gradellm_hf.visualization.plot import write_figure

from .run import DEFAULT_OUTPUT
from .variants import VARIANTS

HERE = Path(__file__).parent
PICTURES = HERE.parent.parent / "docs" / "images"
_TASKS = ("sentiment", "yes_no", "recall", "open")
_LEFT = ("pi_soft_ns", "pi_soft_nc", "soft_ns", "soft_nc", "rank_correlation", "auc", "average_precision")
_RIGHT = ("insertion", "insertion_mask", "insertion_drop", "deletion", "deletion_mask", "deletion_drop")
_DEFAULT = "default"  # the variant that is the package's default
_HEADER = """# Faithfulness: results

Written by `python -m benchmarks.faithfulness.report` on {date}: gradellm_hf {version}, torch {torch}, Transformers
{transformers}, Python {python}.
SmolLM2-135M-Instruct in bfloat16 on a CPU, one thread per process. {draws}

Each cell is the mean over prompts and half the width of its 95 % interval (bootstrap over prompts). The best of a column is
bold. `+` and `-`: better, or worse, than `grad_ellm` by more than the 95 % interval of the difference, prompt by prompt.
`s / token`: median seconds for each explained token; `x generate`: median time over that of `generate`, prompt included.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the results (default: %(default)s)")
    options = parser.parse_args()
    parts = {path.name: load_evaluation(path) for path in sorted(options.output.iterdir()) if (path / "manifest.json").exists()}
    own = merge({task: parts[task] for task in _TASKS if task in parts})
    summaries = {"own": summarise(own)}
    if "lambada" in parts:
        summaries["lambada"] = summarise(merge({"lambada": parts["lambada"]}))
    text = [_header(own)]
    for summary in summaries.values():
        text += [_tables(summary, *task) for task in zip(summary.tasks, summary.num_prompts)]
    ablations = {
        name: summarise(merge({ALL: parts[name]}), reference=_DEFAULT)
        for name in ("ablation", "ablation_report")
        if name in parts
    }
    text += [_ablation(name, summary) for name, summary in ablations.items()]
    write_atomically(HERE / "RESULTS.md", "\n".join(text).encode())
    write_atomically(HERE / "results.jsonl", "".join(_json_lines({**summaries, **ablations})).encode())
    PICTURES.mkdir(exist_ok=True)
    for name, summary in summaries.items():
        task = summary.tasks[-1]
        write_figure(plot_curves(summary, task), PICTURES / f"faithfulness_curves_{name}.png", dpi=90)
        costs = plot_costs(summary, task, ("pi_soft_ns", "pi_soft_nc", "rank_correlation"))
        write_figure(costs, PICTURES / f"faithfulness_costs_{name}.png", dpi=90)


def _header(evaluation: Evaluation) -> str:
    settings = evaluation.settings
    return _HEADER.format(
        date=datetime.date.today().isoformat(),
        version=gradellm_hf.__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        draws=f"Draws of the soft metrics: {settings.num_samples}; portions of tokens deleted: {settings.num_portions}.",
    )


def _tables(summary: Summary, task: str, count: int) -> str:
    name = "all four tasks" if task == ALL else task
    return f"## {name}\n\n{count} prompts.\n\n{summary.to_markdown(task, _LEFT)}\n\n{summary.to_markdown(task, _RIGHT)}\n"


def _ablation(name: str, summary: Summary) -> str:
    count = summary.num_prompts[0]
    prompts = "prompts to tune on" if name == "ablation" else "reported prompts, looked at once"
    lines = [
        f"## Ablation: {count} {prompts}\n",
        "Difference to the default preset, with its 95 % interval; bold if the interval leaves out 0.\n",
        "| variant | what | " + " | ".join(summary.metrics) + " |",
        "|---" * (2 + len(summary.metrics)) + "|",
        *_ablation_rows(summary),
    ]
    return "\n".join(lines) + "\n"


def _ablation_rows(summary: Summary) -> Iterator[str]:
    for method in summary.methods:
        rows = [summary.row(ALL, method, metric) for metric in summary.metrics]
        cells = ["" if row is None else _difference(row.value, row.difference) for row in rows]
        yield f"| `{method}` | {VARIANTS[method].description} | " + " | ".join(cells) + " |"


def _difference(value: Mean, difference: Mean | None) -> str:
    if difference is None:
        return f"{value.mean:.3f}"
    text = f"{difference.mean:+.3f}"
    clear = not difference.low <= 0 <= difference.high
    return f"{f'**{text}**' if clear else text} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _json_lines(summaries: Mapping[str, Summary]) -> Iterator[str]:
    """Every mean and every cost, one per line."""
    for part, summary in summaries.items():
        data = json.loads(json.dumps(summary.to_dict()), parse_float=lambda number: round(float(number), 5))
        for item in (*data["rows"], *data["costs"]):
            yield json.dumps({"part": part, **item}) + "\n"


if __name__ == "__main__":
    main()
