"""What a part is given: the device, the scale, the time; and how all parts measure."""

import gc
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from gradellm_hf import GradELLMWarning
from gradellm_hf.engines.memory import release_memory

from ..measuring import PeakMemory, timed
from .report import Row, failed

GIB = 2**30
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """How a part runs.

    Attributes:
        device: Where the models are.
        scale: "full", the shapes that the targets are for, or "tiny", for a test on any machine.
        folder: For files that a part makes and removes again.
        deadline: The `time.monotonic()` at which it should be done.
    """

    device: torch.device
    scale: str
    folder: Path
    deadline: float

    def pick(self, full: T, tiny: T) -> T:
        return full if self.scale == "full" else tiny

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, run: Callable[[], Any]) -> float:
        """Seconds until the device is done."""
        return timed(run, self.synchronize)

    def peak_memory(self, run: Callable[[], Any]) -> int:
        """The most bytes that were allocated on the device during a run; on a CPU, resident memory."""
        if self.device.type != "cuda":
            with PeakMemory() as memory:
                run()
            return memory.peak
        gc.collect()
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device)

    def pairs(self, base: Callable[[], Any], other: Callable[[], Any], repetitions: int) -> list[tuple[float, float]]:
        """Seconds of both, one after the other, in turns; fewer than `repetitions` if time is short, but at least one.

        Both must be warm.
        """
        measured: list[tuple[float, float]] = []
        for i in range(repetitions):
            if measured and 1.5 * sum(measured[-1]) > self.seconds_left():
                break
            if i % 2:
                second, first = self.timed(other), self.timed(base)
            else:
                first, second = self.timed(base), self.timed(other)
            measured.append((first, second))
        return measured

    def attempt(self, what: str, measure: Callable[..., Row], *arguments: Any) -> Row:
        """The row `measure(setting, what, *arguments)`, or that of its error: the next one runs all the same.

        Raises:
            RuntimeError: An error after which the device cannot be used in this process.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                row = measure(self, what, *arguments)
            except Exception as error:
                if "CUDA error" in str(error):
                    raise
                row = failed(what, error)
        if said := {str(warning.message) for warning in caught if issubclass(warning.category, GradELLMWarning)}:
            row.measured += f". Warned: {' '.join(sorted(said))}"  # that another engine was needed, say
        self.release()
        return row

    def release(self) -> None:
        """Gives memory back that nothing refers to any more."""
        gc.collect()
        release_memory()

    def on_device(self) -> AbstractContextManager[Any]:
        """The device is the current one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
