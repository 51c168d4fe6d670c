"""Files that are written as a whole or not at all; tensors in safetensors, with JSON metadata, checksums and no pickle."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import InvalidInputError
from .schema import check, parse_json

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # how the name of a file ends that is still being written
_CHECKSUM, _CHECKSUMS = "checksum", "checksums"


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file that is there as a whole or not at all, whenever the process or the machine stops.

    Readers, and other threads and processes that write it, always see one whole content. A file that was there keeps its mode,
    and also its content if anything fails. A symbolic link keeps pointing to it. A pipe or a device is simply written to.

    Raises:
        OSError: It cannot be written.
    """
    try:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            found = None
        if found is None or stat.S_ISREG(found.st_mode):
            _replace(Path(os.path.realpath(path)), content, found)
        else:
            with open(path, "wb") as file:
                file.write(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # not the name of the partial file


def _replace(path: Path, content: bytes, found: os.stat_result | None) -> None:
    if found is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    partial = path.with_name(f".{path.name[:32]}.{secrets.token_hex(8)}{PARTIAL}")
    # As in `tempfile`: nobody can guess the name or plant something there. But with the mode that new files have here.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(partial, "wb", opener=lambda name, _: os.open(name, flags, 0o666)) as file:
            _lock(file.fileno())
            if found is not None and os.name == "posix":
                with contextlib.suppress(PermissionError):  # to give a file away
                    os.fchown(file.fileno(), found.st_uid, found.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:  # on Windows, where an open file cannot be renamed
                file.close()
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # so that the new name is on the disk too, if the file system can do that
        with contextlib.suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def remove_partial_files(folder: Path) -> None:
    """Removes files that killed processes have left half written; not those that others are writing now."""
    for partial in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError), open(partial, "rb") as file:
            if _lock(file.fileno()):
                partial.unlink()


def _lock(descriptor: int) -> bool:
    """Locks a file until it is closed; False if another process has locked it."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return True


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready values with their checksum."""
    return {**values, _CHECKSUM: _json_checksum(values)}


def unsealed(values: dict[str, Any]) -> dict[str, Any]:
    """The values that `sealed` was given. Values of an earlier version have no checksum, and are taken as they are.

    Raises:
        InvalidInputError: They have been changed.
    """
    values = dict(values)
    checksum = values.pop(_CHECKSUM, None)
    try:
        intact = checksum is None or checksum == _json_checksum(values)
    except RecursionError:  # nested deeply
        intact = False
    if not intact:
        raise InvalidInputError("the content does not have the checksum that was written with it.")
    return values


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], advice: str = "") -> Iterator[None]:
    """A context in which errors about the content of a file get the name of the file.

    Args:
        advice: What to do.
    """
    try:
        yield
    except InvalidInputError as error:
        hint = f" {advice}" if advice else ""
        raise InvalidInputError(f"{str(path)!r} cannot be read: {error}{hint}") from error


def check_version(path: str | os.PathLike[str], metadata: dict[str, Any], format_version: int) -> None:
    """Raises InvalidInputError if a file is of a later version than this release reads."""
    with reading(path):
        check(metadata.get("format_version"), int, "`format_version`")
    if metadata["format_version"] > format_version:
        raise InvalidInputError(
            f"{str(path)!r} has format version {metadata['format_version']}; this release of gradellm_hf reads versions up "
            f"to {format_version}. Upgrade gradellm-hf."
        )


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes a safetensors file; metadata values are JSON strings in its header. Never leaves half a file behind.

    Args:
        metadata: JSON-ready values; `format` (a name) and `format_version` (an int) among them. Checksums of them and of
            each tensor are added.
    """
    tensors = {name: x.detach().contiguous().cpu() for name, x in tensors.items()}
    header = {name: json.dumps(value) for name, value in metadata.items()}
    checksums = {name: _tensor_checksum(x) for name, x in tensors.items()}
    header[_CHECKSUMS] = json.dumps({"tensors": checksums, "metadata": _json_checksum([header, checksums])})
    write_atomically(path, save(tensors, header))


class TensorFile:
    """A file that `write_tensors` wrote. It is opened once: all that is read is of one file, even if it is replaced meanwhile.

    Attributes:
        metadata: Its values by name; empty for a safetensors file of another origin.

    Args:
        path: The file.
        writer: The function that writes such files, for messages.

    Raises:
        FileNotFoundError: There is no such file.
        InvalidInputError: It is no safetensors file, its metadata are not JSON, or it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], writer: str):
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
        descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        same = f"/dev/fd/{descriptor}"  # `safe_open` opens a path twice, and the second time it may be another file
        try:
            self._file = safe_open(same if os.path.exists(same) else path, "pt")  # mapped, not read
            header = self._file.metadata() or {}
            self.metadata = {name: parse_json(value, f"its `{name}`") for name, value in header.items()}
        except (SafetensorError, InvalidInputError) as error:
            raise InvalidInputError(f"{str(path)!r} is not a file that `{writer}` wrote: {error}") from error
        self._path, self._writer = path, writer
        self._names = set(self._file.keys())
        checksums = self.metadata.pop(_CHECKSUMS, None)  # None: of an earlier version
        self._checksums: dict[str, str] | None = None
        if checksums is not None:
            with reading(path):
                check(checksums, dict[str, Any], f"`{_CHECKSUMS}`")
                check(checksums.get("tensors"), dict[str, str], f"`{_CHECKSUMS}['tensors']`")
                self._checksums = checksums["tensors"]
                del header[_CHECKSUMS]
                whole = checksums.get("metadata") == _json_checksum([header, self._checksums])
                if not whole or self._names != self._checksums.keys():
                    raise InvalidInputError("the metadata do not have the checksum that was written with them.")

    def check_format(self, name: str, version: int) -> None:
        """Raises InvalidInputError if it is not a file of this format, or is of a later version than this."""
        if self.metadata.get("format") != name:
            raise InvalidInputError(f"{str(self._path)!r} is a safetensors file, but not one that `{self._writer}` wrote.")
        check_version(self._path, self.metadata, version)

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names, without those that the file does not have. To be called in a context of `reading`.

        Raises:
            InvalidInputError: One is damaged.
        """
        found = {}
        for name in names:
            if name not in self._names:
                continue
            try:
                found[name] = self._file.get_tensor(name)
            except Exception as error:  # whatever torch says to a dtype that it does not know
                raise InvalidInputError(f"`{name}` cannot be read: {error}") from error
            if self._checksums is not None and self._checksums[name] != _tensor_checksum(found[name]):
                raise InvalidInputError(f"`{name}` does not have the checksum that was written with it.")
        return found


def read_metadata(path: str | os.PathLike[str], writer: str) -> dict[str, Any]:
    """The metadata of a file that `write_tensors` wrote. Errors as for `TensorFile`."""
    return TensorFile(path, writer).metadata


def _json_checksum(value: Any) -> str:
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)  # keys that are no strings become such
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _tensor_checksum(x: Tensor) -> str:
    digest = hashlib.sha256(f"{x.dtype}{list(x.shape)}".encode())
    digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
