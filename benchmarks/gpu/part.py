"""`python -m benchmarks.gpu.part NAME ...`: one part, in a process of its own, which nothing that fails there outlives."""

import argparse
import importlib
import logging
import sys
import time
from pathlib import Path

import torch
import transformers

from .report import PartResult, described, environment
from .setting import Setting

_SHARE = 0.9  # of the limit: a part that looks at the time is done before it is ended


def run_part(part: str, folder: Path, device: torch.device, scale: str, limit: float, scratch: Path) -> PartResult:
    """Runs a part and writes its result after every row. An error is recorded, not raised.

    Args:
        part: Its name.
        folder: Where its file is written.
        device: Where its models are.
        scale: "full" or "tiny".
        limit: Seconds that it may take.
        scratch: A folder for large files, of which some may be left.
    """
    start = time.monotonic()
    module = importlib.import_module(f"{__package__}.{part}")
    result = PartResult(part, module.TITLE, scale)
    result.write(folder)
    try:
        result.environment = environment(device)
        setting = Setting(device, scale, scratch, start + _SHARE * limit)
        with setting.on_device():
            for row in module.rows(setting):
                print(f"  {row.what}: {row.measured}  [{row.target}]", flush=True)
                result.rows.append(row)
                result.seconds = time.monotonic() - start
                result.write(folder)
    except Exception as error:
        logging.getLogger(__name__).error("the part `%s` failed", part, exc_info=True)
        result.status, result.error = "failed", described(error)
    else:
        result.status = "done"
    result.seconds = time.monotonic() - start
    result.write(folder)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--limit", type=float, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for library in ("accelerate", "bitsandbytes", "torchao"):
        logging.getLogger(library).setLevel(logging.ERROR)
    result = run_part(options.part, options.out, options.device, options.scale, options.limit, options.scratch)
    return result.status != "done"


if __name__ == "__main__":
    sys.exit(main())
