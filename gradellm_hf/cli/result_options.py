"""Options that say what to do with an explanation, and doing it."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import at_least, check_files, check_picture, keep, read_json, wrong

if TYPE_CHECKING:
    from ..results.explanation import Explanation
    from ..results.removals import Removals

_SHOWN_ERRORS = 10


def add_result_arguments(parser: argparse.ArgumentParser) -> Any:
    """Adds the options; returns their group, for those of one command."""
    group = parser.add_argument_group("results")
    group.add_argument("--html", type=Path, metavar="FILE", help="write an interactive page, one file that needs no network")
    group.add_argument(
        "--png",
        type=Path,
        metavar="FILE",
        help="write a picture (also .pdf, .svg): of the heatmap; with --sources, of the sources beside the words of the answer",
    )
    group.add_argument("--save", type=Path, metavar="FILE", help="write the scores as .safetensors, for `gradellm show`")
    add_size_arguments(group, "with --save: ")
    group.add_argument(
        "--sources", action="store_true", help="print what each sentence rests on: its strongest sources with their shares"
    )
    group.add_argument(
        "--level",
        choices=("token", "word", "sentence", "paragraph", "message"),
        help="the units that are printed and drawn (default: token); of the sources with --sources (default: sentence)",
    )
    group.add_argument(
        "--spans", type=Path, metavar="FILE", help='named spans of the prompt as units: JSON, {"name": "text" or [start, end]}'
    )
    group.add_argument(
        "--top", type=at_least(1), default=6, metavar="K", help="tokens to name for each one (default: %(default)s)"
    )
    group.add_argument("--json", action="store_true", help="print the scores as JSON instead of lines to read")
    return group


def add_size_arguments(group: Any, when: str = "") -> None:
    """Adds the options that say which scores are stored, and how."""
    group.add_argument(
        "--keep",
        type=keep,
        metavar="K",
        help=f"{when}store only the strongest scores, and the others as sums: top (all that can count in a share), or so many "
        "of each step and kind of token (default: all scores)",
    )
    group.add_argument(
        "--scores",
        choices=("float16", "float32"),
        default="float32",
        help=f"{when}how the scores are stored; float16 takes half the space, and is right to half a thousandth",
    )


def check_results(options: argparse.Namespace, **inputs: Path | None) -> None:
    """Raises InvalidInputError if a file that is asked for could not be written, or would replace another file of the call.

    Args:
        inputs: Files that the call reads, by the options that name them.
    """
    check_files({"--save": options.save, "--html": options.html, "--png": options.png}, {**inputs, "--spans": options.spans})
    check_picture("--png", options.png)
    if options.save is None and (options.keep is not None or options.scores != "float32"):
        raise wrong("--keep and --scores say what --save writes: give a file with --save")
    if options.spans is not None and options.level is not None:
        raise wrong("--spans and --level both name the units: give one of them")
    options.units = options.level if options.spans is None else read_json("--spans", options.spans, dict)


def write_results(
    explanation: "Explanation", options: argparse.Namespace, removal_test: "Callable[..., Removals] | None" = None
) -> int:
    """Writes the files that were asked for, then prints the explanation; returns the exit code.

    A file that cannot be written does not keep the others from being written.

    Args:
        removal_test: `GradELLM.removal_test` of the model, if its results are to stand beside the sources.
    """
    code = 0
    shown = explanation if options.units in (None, "token") else explanation.aggregate(options.units)
    by = options.units or "sentence"
    removals = None if removal_test is None else removal_test(explanation, by)
    page = partial(explanation.to_html, spans=by if isinstance(by, dict) else None, removals=removals)

    def draw(path: Path) -> None:
        (explanation.sources(by, of="word") if options.sources else shown).plot(path)

    save = partial(explanation.save, keep=options.keep, score_dtype=options.scores)
    writers = ((options.save, save), (options.html, page), (options.png, draw))
    for path, write in writers:
        if path is None:
            continue
        try:
            write(path)
        except Exception as error:
            if options.debug:
                raise
            print(f"gradellm: error: {str(path)!r} was not written: {error}", file=sys.stderr)
            code = 1
        else:
            print(f"Wrote {path}", file=sys.stderr)
    if options.sources:
        sources = explanation.sources(by)
        if options.json:
            print_json({**sources.to_dict(), **({} if removals is None else {"removals": removals.to_dict()})})
        else:
            print(sources.render(options.top), *([] if removals is None else [removals]), sep="\n\n")
    elif options.json:
        print_json(shown.to_dict(options.top))
    else:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(shown.render(top=options.top, color=color))
    return code


def print_json(value: Any) -> None:
    """Prints a JSON value; with escapes if standard output cannot encode it, so that nothing is lost."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)


def print_errors(errors: Mapping[int, str], verb: str, ids: Sequence[Any] | Mapping[int, Any]) -> None:
    """Says which prompts of a job failed, and why; if they are many, only the first ones. `ids`: of their records, or None."""
    for index, error in list(errors.items())[:_SHOWN_ERRORS]:
        name = "" if ids[index] is None else f" ({ids[index]})"
        print(f"Prompt {index}{name} was not {verb}: {error}", file=sys.stderr)
    if len(errors) > _SHOWN_ERRORS:
        print(f"... and {len(errors) - _SHOWN_ERRORS} more were not.", file=sys.stderr)
