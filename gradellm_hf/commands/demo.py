"""`gradellm demo`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--color", action="store_true", help="colour the list even where the output is not a terminal")


def run(options: argparse.Namespace) -> int:
    from ..demo import main

    main(["--output", str(options.output), *(["--color"] if options.color else [])])
    return 0
