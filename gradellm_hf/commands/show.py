"""`gradellm show`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .results import add_result_arguments, write_results

if TYPE_CHECKING:
    from ..explanation import Explanation

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
    parser.add_argument("--row", type=int, metavar="N", help="of several sequences in a file, which (default: 0); or prompts")
    parser.add_argument("--id", metavar="ID", help="the prompt of a folder whose record has this `id`")
    parser.add_argument("--sequence", type=int, metavar="N", help="of several sequences of a prompt in a folder, which")
    add_result_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from .job_folder import load_one, print_list

    if not options.file.is_dir():
        if options.id is not None or options.sequence is not None:
            raise argparse.ArgumentError(None, "--id and --sequence are for the folder of a job, and FILE is none")
        explanation = _load(options.file, options.row or 0)
    elif options.row is not None or options.id is not None:
        if None not in (options.row, options.id):
            raise argparse.ArgumentError(None, "--row and --id both name a prompt: give one of them")
        explanation = load_one(options.file, options.row, options.id, options.sequence)
    elif (options.html, options.png, options.save, options.sequence) != (None,) * 4:
        raise argparse.ArgumentError(None, "FILE is the folder of a job: name a prompt with --row or --id")
    else:
        print_list(options.file, options.json)
        return 0
    write_results(explanation, options)
    return 0


def _load(path: Path, row: int) -> "Explanation":
    from ..errors import InvalidInputError
    from ..explanation import Explanation
    from ..outputs import ExplainGenerateOutput

    try:
        return Explanation.load(path)
    except InvalidInputError as error:
        try:
            output = ExplainGenerateOutput.load(path)
        except InvalidInputError:
            raise error from None
    return Explanation.from_output(output, row, None)
