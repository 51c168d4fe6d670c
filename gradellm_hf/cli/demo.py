"""`gradellm demo`."""

import argparse
from pathlib import Path

from .checks import check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--color", action="store_true", help="colour the list even where the output is not a terminal")


def run(options: argparse.Namespace) -> int:
    check_folder("--output", options.output)
    from ..demo import run as ask_and_explain

    ask_and_explain(options.output, options.color)
    return 0
