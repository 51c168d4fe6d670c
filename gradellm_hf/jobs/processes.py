"""The processes that share a job."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidInputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


def processes() -> Any:
    """The processes of a job that `accelerate launch` or `torchrun` started. One may wait a year for the slowest."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available(), timeout=datetime.timedelta(days=365))


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """A context in which no other job writes to a folder. The lock ends with the process, even if it is killed.

    There is no lock if the system or the file system has none.

    Raises:
        InvalidInputError: Another job writes to it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInputError(
                f"Another job is writing to {str(folder)!r}. Wait for it, or write to another folder."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
