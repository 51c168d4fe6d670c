"""`python -m benchmarks.peers`: other libraries beside this one, each in an environment of its own.

Writes `results.json` beside this file after every figure, and prints the table of `docs/comparison.md`. Hours, if all cells
are run: the slow ones end at the limit, and the cells after that one are not tried with them.
"""

import argparse
import datetime
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from gradellm_hf.checks.files import write_atomically
from gradellm_hf.demo_model import load_smollm2, smollm2_folder

from ..measuring import machine
from .environments import interpreter
from .libraries import CELLS, PEERS
from .table import table, versions

_TOO_LONG = "longer than"
ROOT = Path(__file__).resolve().parents[2]
_TEXT = (
    "The harbour of the old town was built of grey stone. Each morning the fishermen brought herring and cod to the market. "
    "A lighthouse stood on the northern cliff, and its keeper wrote down every ship that passed. In winter the ferries "
    "stopped, and letters came only once a week. The school had two teachers, one for the young and one for the old. "
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--cells", nargs="*", type=_cell, default=list(CELLS), metavar="PxN")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for each cell (default: %(default)s)")
    parser.add_argument("--environments", type=Path, default=ROOT / ".peers")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--cpu", action="store_true", help="print ratios of processor seconds, for a machine that is busy")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of what was run")
    options = parser.parse_args()
    if not options.table:
        measure(options)
    results = json.loads(options.output.read_text(encoding="utf-8"))
    print(f"\n{table(results, 'cpu_' if options.cpu else '')}\n\n{versions(results)}")
    return 0


def measure(options: argparse.Namespace) -> None:
    """Runs what was asked for; what was measured before and is not measured again stays."""
    results: dict[str, Any] = {"peers": {}}
    if options.output.exists():
        results = json.loads(options.output.read_text(encoding="utf-8"))
    results |= {"date": str(datetime.date.today()), "machine": machine(), "limit": options.limit}
    options.environments.mkdir(parents=True, exist_ok=True)
    texts = {cell: _text(cell, options.environments) for cell in options.cells}
    for name in options.peers:
        rows = results["peers"].setdefault(name, {})
        for prompt, steps in options.cells:
            row = _measured(name, texts[prompt, steps], options)
            rows[f"{prompt}x{steps}"] = row
            print(f"{name} P={prompt} N={steps}: {row}", flush=True)
            results["peers"] = {known: results["peers"][known] for known in PEERS if known in results["peers"]}
            write_atomically(options.output, (json.dumps(results, indent=1) + "\n").encode())
            if row.get("error", "").startswith(_TOO_LONG):
                break


def _measured(name: str, text: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the worker says; if it fails, why."""
    try:
        python = interpreter(PEERS[name], options.environments)
        command = [str(python), "-m", "benchmarks.peers.worker", name, str(text), str(smollm2_folder())]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=options.limit, check=True
        )
    except subprocess.TimeoutExpired:
        return {"error": f"{_TOO_LONG} {options.limit:.0f} s"}
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:]
        return {"error": "out of memory" if error.returncode == -9 else f"failed: {' '.join(last)[:200]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _text(cell: tuple[int, int], folder: Path) -> Path:
    """A file with the ids of a prompt that reads the same when it is tokenised again, and of what the model writes after it."""
    path = folder / f"text-{cell[0]}x{cell[1]}.json"
    if not path.exists():
        model, tokenizer = load_smollm2()
        prompt = tokenizer(_TEXT * (1 + cell[0] // 60))["input_ids"][: cell[0]]
        if tokenizer(tokenizer.decode(prompt))["input_ids"] != prompt:
            raise RuntimeError("The prompt reads otherwise when it is tokenised again; choose another text.")
        options = {"max_new_tokens": cell[1], "min_new_tokens": cell[1], "do_sample": False}
        out = model.generate(torch.tensor([prompt]), **options)[0].tolist()
        write_atomically(path, json.dumps({"prompt": prompt, "target": out[cell[0] :]}).encode())
    return path


def _cell(text: str) -> tuple[int, int]:
    prompt, _, steps = text.partition("x")
    return int(prompt), int(steps)


if __name__ == "__main__":
    raise SystemExit(main())
