"""Results of single prompts, one JSON line each, in files that may be cut off at any moment."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

from ..checks.files import reading, sealed, unsealed
from ..checks.schema import Natural, check, parse_json
from ..errors import InvalidInputError

Value = float | None | list[float | None]
RECORDS = "records-*.jsonl"  # what their files are called


class Failed(TypedDict):
    """The record of a prompt that was not evaluated."""

    index: Natural
    task: str
    error: str


class _SomeFailed(TypedDict, total=False):
    metric_errors: dict[str, str]


class Done(_SomeFailed):
    """The record of a prompt that was evaluated; by method, and of values by metric and method."""

    index: Natural
    task: str
    num_tokens: Annotated[int, range(1, 2**63)]
    generate_seconds: float | None
    seconds: dict[str, float]
    errors: dict[str, str]
    values: dict[str, dict[str, Value]]


def read_records(folder: Path) -> dict[int, dict[str, Any]]:
    """All whole records of a folder, by the position of their prompt. The last one counts, but a failure replaces no success.

    Raises:
        InvalidInputError: A line is not a record.
    """
    records: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob(RECORDS)):
        for number, line in enumerate(_whole_lines(path), 1):
            record = _record(path, number, line)
            if "error" not in record or "error" in records.get(record["index"], record):
                records[record["index"]] = record
    return dict(sorted(records.items()))


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    with reading(path, "Remove the line, and run the job again."):
        record = parse_json(line, f"line {number}")
        check(record, dict[str, Any], f"line {number}")
        try:
            record = unsealed(record)
            check(record, Failed if "error" in record else Done, "the record")
        except InvalidInputError as error:
            raise InvalidInputError(f"line {number}: {error}") from error
    return record


def drop_partial_records(folder: Path) -> None:
    """Cuts off the record that a process was writing when it was stopped."""
    for path in folder.glob(RECORDS):
        size = sum(map(len, _whole_lines(path)))
        if size < path.stat().st_size:
            os.truncate(path, size)


def append_record(folder: Path, process: int, record: dict[str, Any]) -> None:
    """Writes a record to the file of a process, and to the disk."""
    with (folder / f"records-{process:05d}.jsonl").open("ab") as file:
        file.write((json.dumps(sealed(jsonable(record)), allow_nan=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def jsonable(value: Any) -> Any:
    """The same value with None for numbers that are not finite: JSON does not have them."""
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
