"""What every job over many prompts does: it has a folder to itself, goes on where it was, and shares out what is missing."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..checks.files import remove_partial_files
from ..errors import InvalidInputError
from .manifest import check_same_job, read_manifest, write_manifest
from .processes import only_writer, processes

_Part = TypeVar("_Part")


@contextlib.contextmanager
def job_folder(folder: Path, job: dict[str, Any], results: str) -> Iterator[Any]:
    """A context in which the processes of a job, and no other job, write to a folder. It ends in all of them together.

    Args:
        folder: Is made if it is missing. Results of the same job stay, and what was cut off while it was written is removed.
        job: See `describe_job`.
        results: The names of the files with results, as a pattern.

    Yields:
        The processes; see `processes`.

    Raises:
        InvalidInputError: The folder holds another job, with what differs, or something else, or is being written to.
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
            if not _has(folder, results):  # a job that came to nothing, for an argument that was wrong, say, is in nobody's way
                write_manifest(folder, job)
        state.wait_for_everyone()
        _check_same_job(folder, job)  # now of the main process, which may have been given something else
        yield state
        state.wait_for_everyone()


@contextlib.contextmanager
def shared_out(missing: Mapping[_Part, int], state: Any, description: str) -> Iterator[tuple[list[_Part], Any]]:
    """The share of this process in what is missing, and a progress bar that counts its prompts.

    Args:
        missing: The parts of the job that are to be done, and how many prompts each has; the same in every process.
        state: The processes.
        description: What the progress bar says.
    """
    from tqdm.auto import tqdm

    state.wait_for_everyone()  # all have seen the same files
    share = list(missing)[state.process_index :: state.num_processes]
    disable = None if state.is_main_process else True  # None: where it is no terminal
    options: Any = {"total": sum(missing[part] for part in share), "desc": description, "unit": "prompt", "disable": disable}
    progress: Any = tqdm(**options)
    with progress:
        yield share, progress


def _has(folder: Path, results: str) -> bool:
    return next(folder.glob(results), None) is not None


def _check_same_job(folder: Path, job: dict[str, Any]) -> None:
    found = read_manifest(folder, job["format"])
    if found is None:
        raise InvalidInputError(f"{str(folder)!r} holds results without a manifest. Write to another folder.")
    check_same_job(folder, found, job)
