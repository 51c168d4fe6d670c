"""`gradellm verify`."""

import argparse

from .checks import between, seed
from .model_options import add_model_arguments, load_model
from .result_options import print_json

_EXAMPLES = """
Both engines explain a short random text, with all layers. Exit code 1 if they differ by more than the tolerance.

example:
  gradellm verify ./my-model --dtype float32
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    add_model_arguments(parser)
    parser.add_argument(
        "--tolerance",
        type=between(0, inclusive=True),
        metavar="X",
        help="largest difference, relative to the largest score (default: 1e-3; 1e-1 in bfloat16 and float16)",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the random text (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    from ..verification import verify

    model = load_model(options).model
    tolerance = options.tolerance
    if tolerance is None:
        tolerance = 1e-1 if model.dtype.itemsize < 4 else 1e-3
    difference = verify(model, seed=options.seed)
    exact = difference <= tolerance
    if options.json:
        print_json({"model": options.model, "difference": difference, "tolerance": tolerance, "exact": exact})
    else:
        verdict = "exact up to rounding" if exact else "NOT exact with the replay engine; use the stepwise engine"
        print(f"{options.model}: {verdict}. The engines differ by {difference:.1e} (tolerance {tolerance:.0e}).")
    return 0 if exact else 1
