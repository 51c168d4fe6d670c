"""What every job over many prompts does: it has a folder to itself, continues what is there, and shares what is missing."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..checks.files import remove_partial_files
from ..errors import InvalidInputError
from .manifest import check_same_job, read_manifest, write_manifest
from .processes import only_writer, processes

_Part = TypeVar("_Part")


@contextlib.contextmanager
def job_folder(folder: Path, job: dict[str, Any], results: str) -> Iterator[Any]:
    """A context in which the processes of one job, and no others, write to a folder. It ends in all of them at the same time.

    Args:
        folder: It is made if it is missing. Results of the same job stay; files that were half written are removed.
        job: See `describe_job`.
        results: The names of the files with results, as a pattern.

    Yields:
        The processes; see `processes`.

    Raises:
        InvalidInputError: The folder holds another job (the message says what differs) or something else, or another job is
            writing to it.
    """
    state = processes()
    if _has(folder, results):
        _check_same_job(folder, job)  # before anything is changed
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder) if state.is_main_process else contextlib.nullcontext():
        if state.is_main_process:
            remove_partial_files(folder)
            read_manifest(folder, job["format"])  # of a job of this kind, if of any
            if not _has(folder, results):  # a job that has written nothing (an argument was wrong, say) may be replaced
                write_manifest(folder, job)
        state.wait_for_everyone()
        _check_same_job(folder, job)  # against the job of the main process, which may have got other arguments
        yield state
        state.wait_for_everyone()


@contextlib.contextmanager
def shared_out(missing: Mapping[_Part, int], state: Any, description: str) -> Iterator[tuple[list[_Part], Any]]:
    """A context with the parts that this process has to do, and a progress bar that counts their prompts.

    Args:
        missing: The missing parts of the job, and how many prompts each has; the same in every process.
        state: The processes.
        description: What the progress bar says.
    """
    from tqdm.auto import tqdm

    state.wait_for_everyone()  # all have seen the same files
    share = list(missing)[state.process_index :: state.num_processes]
    disable = None if state.is_main_process else True  # None: unless it is a terminal
    options: Any = {"total": sum(missing[part] for part in share), "desc": description, "unit": "prompt", "disable": disable}
    progress: Any = tqdm(**options)
    with progress:
        yield share, progress


@contextlib.contextmanager
def seeded(text: str, model: Any) -> Iterator[None]:
    """A context with a random state that follows from a text; afterwards the state is as before."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
        yield


def _has(folder: Path, results: str) -> bool:
    return next(folder.glob(results), None) is not None


def _check_same_job(folder: Path, job: dict[str, Any]) -> None:
    found = read_manifest(folder, job["format"])
    if found is None:
        raise InvalidInputError(f"{str(folder)!r} holds results without a manifest. Write to another folder.")
    check_same_job(folder, found, job)
