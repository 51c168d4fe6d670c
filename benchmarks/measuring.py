"""What the benchmarks share: time, resident memory, how a figure is written, and the machine."""

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def timed(run: Callable[[], Any], synchronize: Callable[[], Any] = lambda: None) -> float:
    """How long a run takes, in seconds.

    Args:
        run: What is measured.
        synchronize: Waits until a device has done everything that it was asked for.
    """
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def median_and_range(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


class PeakMemory:
    """The highest resident memory of this process while it is open, in bytes; weights mapped from the disk count.

    Args:
        interval: Seconds between two looks. Where time is measured too, looks must be rare: they hold up other threads.
    """

    def __init__(self, interval: float = 0.001):
        self._interval = interval

    def __enter__(self) -> "PeakMemory":
        self.before = self.peak = resident_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, resident_memory())
            time.sleep(self._interval)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def resident_memory() -> int:
    with open(f"/proc/{os.getpid()}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine() -> str:
    """The processor and its number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores" if cpuinfo.exists() else platform.machine()
