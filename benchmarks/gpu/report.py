"""Results of the parts: a JSON file for each, and the table of them all for RESULTS.md."""

import datetime
import importlib.metadata
import importlib.util
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradellm_hf.checks.files import write_atomically

from ..measuring import machine
from . import PARTS

TABLE = "RESULTS.md"
_PACKAGES = ("gradellm_hf", "transformers", "accelerate", "safetensors", "flash_attn", "bitsandbytes", "torchao", "gptqmodel")


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        measured: The figure, as it is read; or why there is none.
        target: What it should be; empty if there is no target.
        outcome: "measured", "met" or "missed" (the target), "not run" (something is not there), or "failed" (an error).
        values: The numbers by name, for programs.
    """

    what: str
    measured: str
    target: str = ""
    outcome: str = "measured"
    values: dict[str, Any] = field(default_factory=dict)


def with_target(what: str, measured: str, target: str, met: bool, **values: Any) -> Row:
    return Row(what, measured, target, "met" if met else "missed", values)


def not_run(what: str, reason: str) -> Row:
    return Row(what, f"not run: {reason}", outcome="not run")


def failed(what: str, error: BaseException) -> Row:
    return Row(what, f"failed: {described(error)}", outcome="failed", values={"out_of_memory": is_out_of_memory(error)})


def described(error: BaseException) -> str:
    """An error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ended, also if another error was raised for that reason."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower():
            return True
        error = error.__cause__
    return False


@dataclass
class PartResult:
    """What is known of a part: `status` is "running", "done" (it went to its end) or "failed" (`error` says why)."""

    part: str
    title: str
    scale: str
    status: str = "running"
    error: str = ""
    seconds: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        write_atomically(_file(folder, self.part), json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def read(cls, folder: Path, part: str) -> "PartResult | None":
        """None if there is none yet."""
        file = _file(folder, part)
        if not file.exists():
            return None
        values = json.loads(file.read_text())
        return cls(**{**values, "rows": [Row(**row) for row in values["rows"]]})


def write_table(folder: Path) -> None:
    """Writes the results of all parts that have any as one Markdown file."""
    results = [result for part in PARTS if (result := PartResult.read(folder, part)) is not None]
    write_atomically(folder / TABLE, "\n".join(map(_section, results)).encode())


def environment(device: torch.device) -> dict[str, str]:
    """The machine and the versions that a part ran with."""
    facts = {"date": str(datetime.date.today()), "device": machine(), "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["device"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        facts["processor"] = machine()
        facts["CUDA"] = str(torch.version.cuda)
        facts["cuDNN"] = str(torch.backends.cudnn.version())
    facts["torch"] = torch.__version__
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    import gradellm_hf

    return {**facts, "gradellm_hf": gradellm_hf.__version__}


def is_installed(module: str) -> bool:
    """Whether a module, or one of a package (`optimum.quanto`), is there; it is not imported, but what it is in is."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.json"


def _section(result: PartResult) -> str:
    facts = dict(result.environment)
    where = ", ".join([facts.pop("device", "unknown device"), *(f"{name} {value}" for name, value in facts.items())])
    ended = {"done": "", "running": " **It has not ended.**"}.get(result.status, f" **It failed: {_cell(result.error)}.**")
    scale = "" if result.scale == "full" else " Tiny shapes: these figures only show that the command works."
    command = f"`python -m benchmarks.gpu --parts {result.part}`"
    head = f"## {result.title}\n\n{command}: {where}; {result.seconds:.0f} s.{scale}{ended}\n"
    lines = [f"| {_cell(row.what)} | {_cell(row.measured)} | {_cell(row.target)}{_verdict(row)} |" for row in result.rows]
    return "\n".join([head, "| what | measured | target |", "|---|---|---|", *lines, ""])


def _verdict(row: Row) -> str:
    return " (missed)" if row.outcome == "missed" else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
