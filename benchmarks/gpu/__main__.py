"""`python -m benchmarks.gpu --out DIR`: what only a GPU can show, in parts of at most 8 minutes.

Run it in a checkout. It needs what `gradellm_hf` needs and nothing else: no model hub, as weights are random. Each part runs in
a process of its own and writes DIR/PART.json after every figure; DIR/RESULTS.md has the tables of all parts. A part that fails,
runs out of memory or takes too long is recorded with its error, and the next one runs. Start the command again to go on: parts
that are done are not run again.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from . import PARTS
from .report import PartResult, write_table

_ROOT = Path(__file__).parents[2]
_LETTERS = dict(zip("abcdef", PARTS, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = ", ".join(f"{letter} {part}" for letter, part in _LETTERS.items())
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; made if it is not there")
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help=f"some of the parts, with commas: {names}")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny: shapes for a test, on any machine")
    parser.add_argument("--limit", type=float, default=480, help="seconds that a part may take (default: 480)")
    parser.add_argument("--again", action="store_true", help="also run parts that are done")
    parser.add_argument("--device", help="cuda:0 if there is one; with --scale tiny, else the CPU")
    parser.add_argument(
        "--scratch", type=Path, help="folder for large files, such as weights on a disk (default: that of --out)"
    )
    options = parser.parse_args()
    device = options.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    if options.scale == "full" and not device.startswith("cuda"):
        parser.error("there is no CUDA device for the full shapes; to try the command on a CPU: --scale tiny")
    options.out.mkdir(parents=True, exist_ok=True)
    results = [result for part in PARTS if (result := PartResult.read(options.out, part)) is not None]
    if any(result.scale != options.scale for result in results):
        parser.error(f"{options.out} has results of another scale; name another folder")

    statuses = []
    for part in options.parts:
        result = PartResult.read(options.out, part)
        if result is not None and result.status == "done" and not options.again:
            print(f"{part}: done before")
        else:
            print(f"{part} ...", flush=True)
            result = run_in_process(part, options, device)
            print(f"{part}: {result.status} after {result.seconds:.0f} s {result.error}", flush=True)
        statuses.append(result.status)
        write_table(options.out)
    return any(status != "done" for status in statuses)


def run_in_process(part: str, options: argparse.Namespace, device: str) -> PartResult:
    """Runs a part in a process of its own, which is ended at the limit; returns what it wrote, or why it wrote nothing."""
    command = [sys.executable, "-m", "benchmarks.gpu.part", part, "--out", options.out, "--device", device]
    command += ["--scale", options.scale, "--limit", options.limit]
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
    (options.out / f"{part}.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=options.scratch or options.out, prefix="scratch-") as scratch:  # goes, however it ends
        command += ["--scratch", scratch]
        process = subprocess.Popen(list(map(str, command)), env={**os.environ, **settings}, start_new_session=True)
        try:
            code = process.wait(options.limit)
            ended = f"its process ended with signal {-code}, for want of memory perhaps" if code < 0 else f"exit status {code}"
        except subprocess.TimeoutExpired:
            ended = f"it took longer than {options.limit:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started, such as compilers
                process.wait()
    result = PartResult.read(options.out, part) or PartResult(part, part, options.scale)
    if result.status == "running":
        result.status, result.error = "failed", ended
        result.write(options.out)
    return result


def _parts(text: str) -> list[str]:
    names = [_LETTERS.get(name, name) for name in text.split(",")]
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"unknown parts {unknown}; the parts are {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
