"""Files of tensors with JSON metadata: safetensors, written atomically, read without pickle."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import InvalidInputError

PARTIAL = ".partial"  # how the name of a file ends that is still being written


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes a safetensors file; metadata values are JSON strings in its header. Never leaves half a file behind.

    Args:
        metadata: JSON-ready values; `format` (a name) and `format_version` (an int) among them.
    """
    tensors = {name: x.detach().contiguous().cpu() for name, x in tensors.items()}
    write_atomically(Path(path), save(tensors, {name: json.dumps(value) for name, value in metadata.items()}))


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is either there as a whole or not at all, whenever the process or the machine stops."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":  # the new name is on the disk, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_metadata(path: str | os.PathLike[str], writer: str) -> dict[str, Any]:
    """The metadata of a file that `write_tensors` wrote; empty for a safetensors file of another origin.

    Args:
        writer: The function that writes such files, for messages.

    Raises:
        FileNotFoundError: There is no such file.
        InvalidInputError: It is no safetensors file, or its metadata is not JSON.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        with safe_open(path, "pt") as file:
            return {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InvalidInputError(f"{str(path)!r} is not a file that `{writer}` wrote: {error}") from error


def read_tensors(
    path: str | os.PathLike[str], format_name: str, format_version: int, writer: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and metadata of a file that `write_tensors` wrote with this format name.

    Raises:
        FileNotFoundError: There is no such file.
        InvalidInputError: It is not such a file, or of a later version than `format_version`.
    """
    metadata = read_metadata(path, writer)
    if metadata.get("format") != format_name:
        raise InvalidInputError(f"{str(path)!r} is a safetensors file, but not one that `{writer}` wrote.")
    if metadata["format_version"] > format_version:
        raise InvalidInputError(
            f"{str(path)!r} has format version {metadata['format_version']}; this release of gradellm_hf reads versions up "
            f"to {format_version}. Upgrade gradellm-hf."
        )
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a mapping
