"""Results of single prompts, one JSON line each, in files that may be cut off at any moment."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError

_PATTERN = "records-*.jsonl"


def read_records(folder: Path) -> dict[int, dict[str, Any]]:
    """All whole records of a folder, by the position of their prompt.

    Raises:
        InvalidInputError: A line is not a record.
    """
    records = {}
    for path in sorted(folder.glob(_PATTERN)):
        for number, line in enumerate(_whole_lines(path), 1):
            try:
                record = json.loads(line)
                records[int(record["index"])] = record
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInputError(f"Line {number} of {str(path)!r} is not a record: {error!r}") from error
    return dict(sorted(records.items()))


def drop_partial_records(folder: Path) -> None:
    """Cuts off what a process was writing when it was stopped."""
    for path in folder.glob(_PATTERN):
        size = sum(map(len, _whole_lines(path)))
        if size < path.stat().st_size:
            os.truncate(path, size)


def append_record(folder: Path, process: int, record: dict[str, Any]) -> None:
    """Writes a record to the file of a process, and to the disk."""
    with (folder / f"records-{process:05d}.jsonl").open("ab") as file:
        file.write((json.dumps(jsonable(record), ensure_ascii=False, allow_nan=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def jsonable(value: Any) -> Any:
    """The same value with None for numbers that are not finite, which JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: jsonable(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(x) for x in value]
    return value


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))
