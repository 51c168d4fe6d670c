"""`python -m tests.support.attack`: bad inputs and damaged files, and what comes of each.

Prints a table of outcomes (rows: the surface; columns: right, clear error, silent, unclear), then each call that is silent or
unclear, and exits with 1 if there is one. What the outcomes mean is said in `outcomes`; how a damaged file is judged, in
`files`.
"""

import argparse
import collections
import contextlib
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers

from . import command_line, files, jobs, measures, models, results
from .outcomes import Attack, Outcome, judged
from .world import World, make_world

CALLS = {"models": models, "results": results, "measures": measures, "jobs": jobs, "command line": command_line}


def attacks(world: World, per_kind: int, seed: int, only: str) -> Iterator[Attack]:
    """All of them, or those of the surfaces whose name begins with `only`."""
    for module in CALLS.values():
        yield from (attack for attack in module.attacks(world) if attack.surface.startswith(only))
    if only.startswith("file") or not only:
        yield from (attack for attack in files.attacks(world, per_kind, seed) if attack.surface.startswith(only))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.attack", description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=250, metavar="N", help="damaged files per kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the damages (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="SURFACE", help="those whose name begins so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    table: dict[str, collections.Counter[Outcome]] = collections.defaultdict(collections.Counter)
    faults: list[str] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(os.chdir, os.getcwd())
        os.chdir(folder)  # where a relative path leads
        for attack in attacks(make_world(Path(folder)), options.files, options.seed, options.only):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                outcome, what = judged(attack)
            table[attack.surface][outcome] += 1
            if outcome in (Outcome.SILENT, Outcome.UNCLEAR):
                faults.append(f"{outcome.value}: {attack.surface}: {attack.name}: {what}")
    for line in _lines(table):
        print(line)
    print(f"\n{sum(map(sum, (row.values() for row in table.values())))} attacks in {time.perf_counter() - start:.0f} s")
    for fault in faults:
        print(fault)
    return int(bool(faults))


def _lines(table: dict[str, collections.Counter[Outcome]]) -> Iterator[str]:
    width = max(map(len, [*table, "surface"]))
    yield "  ".join(["surface".ljust(width), *(outcome.value for outcome in Outcome)])
    for name, row in [*table.items(), ("all", sum(table.values(), collections.Counter()))]:
        yield "  ".join([name.ljust(width), *(str(row[outcome]).rjust(len(outcome.value)) for outcome in Outcome)])


if __name__ == "__main__":
    sys.exit(main())
