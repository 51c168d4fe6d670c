"""Prompts from files, from `datasets` and from lists, read one at a time."""

import datetime
import decimal
import json
import os
import uuid
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..checks.arguments import string
from ..checks.optional import needed_for
from ..checks.schema import parse_json
from ..errors import InvalidInputError

COLUMNS = ("prompt", "messages", "chat")
_ID = "id"
_NAMED_BY_THEIR_TEXT = (uuid.UUID, datetime.date, datetime.time, decimal.Decimal, os.PathLike)


class Prompt(NamedTuple):
    """A text or a chat, and the name and further fields that its record gives it, if any."""

    content: Any
    id: Any = None
    fields: Mapping[str, Any] = MappingProxyType({})


class PromptReader:
    """Prompts by position.

    Args:
        source: A `.jsonl` or `.parquet` file; a folder that `Dataset.save_to_disk` wrote; a `datasets.Dataset`; or any
            iterable. Its records are texts, chats (lists of messages), or mappings that hold one of these.
        column: The field of a record with the prompt. None: `prompt`, `messages` or `chat`, the first that it has. A field
            `id` names the record.
        fields: Further fields to read, if a record has them.

    Raises:
        InvalidInputError: The source cannot be read, or is empty; or `column` is no text.
        FileNotFoundError: There is no such file.
    """

    def __init__(self, source: Any, column: str | None = None, fields: Sequence[str] = ()):
        self._column, self._fields = string("column", column, none="prompt, messages or chat"), fields
        self._records = _records(source, (*(COLUMNS if column is None else (column,)), _ID, *fields))
        if not len(self._records):
            raise InvalidInputError("There are no prompts to explain: the input is empty.")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Prompt:
        """The prompt at a position.

        Raises:
            InvalidInputError: The record there holds none, or an `id` that no file can hold.
        """
        record = self._records[index]
        if not isinstance(record, Mapping):
            return Prompt(record)
        columns = COLUMNS if self._column is None else (self._column,)
        for column in columns:
            if record.get(column) is not None:
                fields = {name: record[name] for name in self._fields if record.get(name) is not None}
                return Prompt(record[column], _storable_id(record.get(_ID)), fields)
        raise InvalidInputError(
            f"The record has no prompt in {' or '.join(map(repr, columns))}; its fields are {list(record)}. Name the field "
            "with `column`."
        )

    def id(self, index: int) -> Any:
        """The `id` of the record at a position, also if it holds no prompt; None if it has none that can be stored."""
        try:
            record = self._records[index]
            return _storable_id(record.get(_ID)) if isinstance(record, Mapping) else None
        except InvalidInputError:
            return None


class JsonLines(Sequence[Any]):
    """The records of a JSONL file. Only the positions of its lines are kept in memory."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("rb")
        self._offsets = array("Q")
        offset = 0
        for line in self._file:
            if line.strip():
                self._offsets.append(offset)
            offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: Any) -> Any:
        self._file.seek(self._offsets[index])
        return parse_json(self._file.readline(), f"Record {index} of {str(self._path)!r}")


class ParquetRows(Sequence[Any]):
    """The rows of a Parquet file. Only the given columns are read."""

    def __init__(self, path: Path, columns: Sequence[str]):
        with needed_for("Parquet files need", "pyarrow"):
            import pyarrow.parquet as parquet
        try:
            wanted = [name for name in parquet.read_schema(path).names if name in columns]
            self._table = parquet.read_table(path, columns=wanted or None)
            self._table.validate(full=True)
        except Exception as error:  # pyarrow has errors of many classes for damaged files
            raise InvalidInputError(f"{str(path)!r} cannot be read as a Parquet file: {error}") from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        return self._table.slice(index, 1).to_pylist()[0]


def _records(source: Any, columns: Sequence[str]) -> Sequence[Any]:
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(source), columns)
    if isinstance(source, Mapping):
        raise InvalidInputError(f"Prompts must be a list, a dataset or a file, got a mapping of {list(source)}. Choose one.")
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        records: Sequence[Any] = source
        return records
    if isinstance(source, Iterable):
        return list(source)
    raise InvalidInputError(f"Prompts must be an iterable or the path of a file, got {type(source).__name__}.")


def _from_path(path: Path, columns: Sequence[str]) -> Sequence[Any]:
    if path.is_dir():
        with needed_for("Dataset folders need", "datasets"):
            from datasets import load_from_disk
        try:
            dataset = load_from_disk(path)
        except Exception as error:  # whatever `datasets` says to a damaged folder
            raise InvalidInputError(f"{str(path)!r} cannot be read as a folder of Dataset.save_to_disk: {error}") from error
        return _records(dataset, columns)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} with prompts.")
    if path.suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if path.suffix == ".parquet":
        return ParquetRows(path, columns)
    raise InvalidInputError(f"Prompts are read from .jsonl and .parquet files and from dataset folders, not {path.name!r}.")


def _storable_id(value: Any) -> Any:
    """The `id` of a record as JSON has it. Numbers of NumPy and torch become Python's; a UUID, date, decimal or path its text.

    Raises:
        InvalidInputError: JSON cannot hold it.
    """
    if isinstance(value, _NAMED_BY_THEIR_TEXT):
        return str(value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"The record's `id` is a {type(value).__name__}, which cannot be stored with its explanation ({error}). Give a "
            "text or a number."
        ) from error
