"""`gradellm show`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .checks import at_least, wrong
from .result_options import add_result_arguments, check_results, write_results

if TYPE_CHECKING:
    from ..results.explanation import Explanation

_EXAMPLES = """
examples:
  gradellm show explanation.safetensors --top 3
  gradellm show explanation.safetensors --html page.html --png heatmap.png
  gradellm show explained
  gradellm show explained --id question-7 --html page.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="a file that `gradellm explain --save`, `Explanation.save` or `explain_generate`'s `save` wrote; or the folder of "
        "`gradellm dataset`, which is listed unless --row or --id names a prompt",
    )
    rows = "of several sequences in a file, or prompts in a folder, which (default: 0)"
    parser.add_argument("--row", type=at_least(0), metavar="N", help=rows)
    parser.add_argument("--id", metavar="ID", help="the prompt of a folder whose record has this `id`")
    parser.add_argument("--sequence", type=at_least(0), metavar="N", help="of several sequences of a prompt in a folder, which")
    add_result_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from .job_folder import load_one, print_list

    is_folder = options.file.is_dir()
    if not is_folder and (options.id is not None or options.sequence is not None):
        raise wrong("--id and --sequence are for the folder of a job, and FILE is none")
    if None not in (options.row, options.id):
        raise wrong("--row and --id both name a prompt: give one of them")
    is_list = is_folder and options.row is None and options.id is None
    wanted = (options.html, options.png, options.save, options.sequence, options.level, options.spans, options.sources or None)
    if is_list and wanted != (None,) * len(wanted):
        raise wrong("FILE is the folder of a job: name a prompt with --row or --id")
    if is_list:
        print_list(options.file, options.json)
        return 0
    check_results(options, FILE=options.file)
    if is_folder:
        explanation = load_one(options.file, options.row, options.id, options.sequence)
    else:
        explanation = _load(options.file, options.row or 0)
    return write_results(explanation, options)


def _load(path: Path, row: int) -> "Explanation":
    from ..errors import InvalidInputError
    from ..results.explanation import Explanation
    from ..results.output import ExplainGenerateOutput

    try:
        explanation = Explanation.load(path)
    except InvalidInputError as error:
        try:
            output = ExplainGenerateOutput.load(path)
        except InvalidInputError:
            raise error from None
        return output.explanation(row)
    if row != 0:
        raise InvalidInputError(f"There is no row {row}: {str(path)!r} holds one sequence, which is row 0.")
    return explanation
