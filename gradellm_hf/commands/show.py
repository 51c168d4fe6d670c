"""`gradellm show`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .checks import at_least
from .results import add_result_arguments, check_results, write_results

if TYPE_CHECKING:
    from ..explanation import Explanation

_EXAMPLES = """
examples:
  gradellm show explanation.safetensors --top 3
  gradellm show explanation.safetensors --html page.html --png heatmap.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="a file that `gradellm explain --save`, `Explanation.save` or `explain_generate`'s `save` wrote",
    )
    parser.add_argument(
        "--row", type=at_least(0), default=0, metavar="N", help="of a file with several sequences, which (default: 0)"
    )
    add_result_arguments(parser)


def run(options: argparse.Namespace) -> int:
    check_results(options, FILE=options.file)
    return write_results(_load(options.file, options.row), options)


def _load(path: Path, row: int) -> "Explanation":
    from ..errors import InvalidInputError
    from ..explanation import Explanation
    from ..outputs import ExplainGenerateOutput

    try:
        explanation = Explanation.load(path)
    except InvalidInputError as error:
        try:
            output = ExplainGenerateOutput.load(path)
        except InvalidInputError:
            raise error from None
        return Explanation.from_output(output, row, None)
    if row != 0:
        raise InvalidInputError(f"There is no row {row}: {str(path)!r} holds one sequence, which is row 0.")
    return explanation
