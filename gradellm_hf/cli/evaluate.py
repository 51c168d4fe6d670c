"""`gradellm evaluate`, or `python -m gradellm_hf.evaluate`: measures how faithful each method's explanations of a model are."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .checks import at_least, between, check_folder, check_matplotlib, seed, wrong
from .model_options import add_model_arguments, load_model, use_own_device
from .result_options import print_errors

_EXAMPLES = """
PROMPTS is a .jsonl or .parquet file or a folder of Dataset.save_to_disk. A record has a `prompt`, or a chat in `messages`. It
may have: `id`; `task`, the group it is reported in; `target`, the continuation to explain; `rationale`, a list of [start, end],
the characters that a person marked; `sources`, likewise, each the place of a source (without it, sentences are sources). Run
the same command again to continue one that was stopped. For several processes:
`torchrun --nproc_per_node N -m gradellm_hf.evaluate ...`.

FOLDER gets manifest.json and records-*.jsonl during the run, and results.json, results.md and pictures at its end.

examples:
  gradellm evaluate ./my-model --prompts prompts.jsonl --output evaluation
  gradellm evaluate ./my-model --prompts prompts.jsonl --output evaluation --methods grad_ellm,attention_mean,random \\
      --metrics pi_soft_ns,pi_soft_nc --max-new-tokens 8 --level sequence
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.epilog = _EXAMPLES
    add_model_arguments(parser)
    group = parser.add_argument_group("what is evaluated")
    group.add_argument("--prompts", required=True, metavar="PROMPTS", help="the file or folder with the prompts")
    group.add_argument("--output", required=True, metavar="FOLDER", help="the folder to write to, or to continue")
    group.add_argument("--methods", type=_names, metavar="A,B,...", help="names of methods (default: all; --list shows them)")
    group.add_argument("--metrics", type=_names, metavar="A,B,...", help="names of metrics (default: all; --list shows them)")
    group.add_argument("--list", action=_List, nargs=0, help="list the methods and the metrics, and leave")
    group.add_argument("--column", metavar="NAME", help="the field with the prompt (default: prompt, messages or chat)")
    group.add_argument("--where", type=_where, action="append", default=[], metavar="FIELD=VALUE", help="only such records")
    group.add_argument("--max-prompts", type=at_least(1), metavar="N", help="only the first N")
    group.add_argument(
        "--max-new-tokens", type=at_least(1), default=1, metavar="N", help="tokens to write (default: %(default)s)"
    )
    group = parser.add_argument_group("how it is measured")
    group.add_argument(
        "--level",
        choices=("step", "sequence"),
        default="step",
        help="every generated token by itself, or all together (default: %(default)s)",
    )
    group.add_argument(
        "--samples", type=at_least(1), default=1, metavar="N", help="draws of a soft metric (default: %(default)s)"
    )
    group.add_argument(
        "--portions", type=at_least(1), metavar="N", help="in which tokens are deleted or inserted (default: single)"
    )
    group.add_argument(
        "--masks", type=at_least(2), default=64, metavar="N", help="random masks of the LDS (default: %(default)s)"
    )
    group.add_argument("--perturb-special-tokens", action="store_true", help="perturb template markers and the like, too")
    group.add_argument(
        "--batch-size", type=at_least(1), default=32, metavar="N", help="texts per forward pass (default: %(default)s)"
    )
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="of all random draws (default: %(default)s)")
    group = parser.add_argument_group("how it is reported")
    group.add_argument("--reference", metavar="METHOD", help="to compare with (default: grad_ellm, if it is among them)")
    group.add_argument(
        "--confidence", type=between(0, 1), default=0.95, metavar="X", help="of the intervals (default: %(default)s)"
    )
    group.add_argument("--no-plots", action="store_true", help="draw no pictures (else matplotlib is needed)")
    group.add_argument("--json", action="store_true", help="print results.json instead of the tables")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code, 1 if a prompt could not be evaluated, or a method or metric failed on one.

    Raises:
        As `gradellm_hf.evaluation.evaluate`.
    """
    from ..evaluation import Settings, evaluate
    from ..evaluation.results import FORMAT
    from ..evaluation.runner import plan
    from ..jobs.manifest import read_manifest
    from ..jobs.processes import processes

    where, folder = dict(options.where), Path(options.output)
    if len(where) < len(options.where):
        raise wrong("--where names a field twice")
    methods = plan(options.prompts, options.methods, options.metrics, options.column, where, options.max_prompts)[0]
    if options.reference is not None and options.reference not in methods:
        raise wrong(f"--reference {options.reference} is not among the methods: {', '.join(methods)}")
    check_folder("--output", folder)
    read_manifest(folder, FORMAT)  # of a job of this kind, if of any
    if not options.no_plots:
        check_matplotlib("Without --no-plots pictures are drawn, which needs")
    state = processes()
    use_own_device(options, state)
    settings = Settings(
        level=options.level,
        num_samples=options.samples,
        num_portions=options.portions,
        num_masks=options.masks,
        perturb_special_tokens=options.perturb_special_tokens,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    evaluation = evaluate(
        load_model(options),
        options.prompts,
        options.output,
        methods=options.methods,
        metrics=options.metrics,
        settings=settings,
        column=options.column,
        where=where,
        max_prompts=options.max_prompts,
        max_new_tokens=options.max_new_tokens,
    )
    if state.is_main_process:
        report(evaluation, folder, options)
    state.destroy_process_group()
    return int(bool(evaluation.errors) or any(_failures(evaluation).values()))


def report(evaluation: Any, folder: Path, options: argparse.Namespace) -> None:
    """Writes what a job found, as data, tables and pictures, and prints it."""
    from ..checks.files import write_atomically
    from ..evaluation import summarise
    from ..evaluation.plots import plot_costs, plot_curves
    from ..visualization.plot import write_figure

    _print_errors(evaluation)
    if not evaluation.done():
        return
    summary = summarise(evaluation, reference=options.reference or "grad_ellm", confidence=options.confidence)
    data = json.dumps({"manifest": evaluation.manifest, "summary": summary.to_dict()}, indent=1) + "\n"
    tables = "\n".join(
        f"## {task or 'results'}\n\n{count} {'prompt' if count == 1 else 'prompts'}\n\n{summary.to_markdown(task)}\n"
        for task, count in zip(summary.tasks, summary.num_prompts)
    )
    write_atomically(folder / "results.json", data.encode())
    write_atomically(folder / "results.md", tables.encode(errors="replace"))
    print(data if options.json else tables, end="")
    names: set[str] = set()
    for task in () if options.no_plots else summary.tasks:
        rows = [row for row in summary.rows if row.task == task]  # none if no metric is defined for this task
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"_{task[:100]}" if task)
        while name.lower() in names:  # of another task, whose name differs in other characters
            name += "_"
        names.add(name.lower())
        suffix = f"{name}.png"
        if rows:
            write_figure(plot_costs(summary, task), folder / f"costs{suffix}")
        if any(row.curve for row in rows):
            write_figure(plot_curves(summary, task), folder / f"curves{suffix}")


def _print_errors(evaluation: Any) -> None:
    print_errors(evaluation.errors, "evaluated", {index: evaluation.records[index].get("id") for index in evaluation.errors})
    for name, messages in _failures(evaluation).items():
        if messages:
            print(f"{name} failed on {len(messages)} prompts; the first time: {messages[0]}", file=sys.stderr)


def _failures(evaluation: Any) -> dict[str, list[str]]:
    """What went wrong with each method and each metric."""
    failures = {method: evaluation.method_errors(method) for method in evaluation.methods}
    return failures | {metric: evaluation.metric_errors(metric) for metric in evaluation.metrics}


class _List(argparse.Action):
    """Prints the names that there are, and leaves."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from ..evaluation import METRICS
        from ..methods import method_names

        print("methods:", *method_names(), sep="\n  ")
        print("metrics:", *METRICS, sep="\n  ")
        parser.exit()


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _where(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"FIELD=VALUE is expected, got {text!r}")
    return name, value
