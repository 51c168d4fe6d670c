"""Rows for Arrow and Parquet: what `ExplainBatch` reads from a batch of an engine, and the columns that it adds to it."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ..checks.optional import needed_for
from ..errors import InvalidInputError
from ..results.explanation import Explanation
from ..results.kept import Keep, classes_of, reduced_by
from ..results.ranking import Of
from ..text.readable import Level


def described(explanation: Explanation, keep: Keep, by: Sequence[Level], of: Of) -> dict[str, Any]:
    """The columns of one explanation, but for `error`.

    Args:
        keep: Which scores; see `Explanation.compact`.
        by: What the sources are, one level or several.
        of: The parts of the answer.

    Raises:
        InvalidInputError: As `Explanation.sources`.
    """
    kept, rest = reduced_by(explanation.attributions, explanation.rest, classes_of(explanation), keep)
    steps = list(zip(*(x.split(kept.counts.tolist()) for x in (kept.positions, kept.scores))))
    orders = [scores.abs().argsort(descending=True, stable=True) for _, scores in steps]
    return {
        "answer": explanation.answer,
        "sources": [part for level in by for part in _parts(explanation, level, of)],
        "tokens": explanation.tokens,
        "token_ids": explanation.token_ids,
        "prompt_length": explanation.prompt_length,
        "token_probabilities": explanation.token_probabilities.tolist(),
        "positions": [positions[order].tolist() for (positions, _), order in zip(steps, orders)],
        "scores": [scores[order].tolist() for (_, scores), order in zip(steps, orders)],
        "rest": rest.total.tolist(),
    }


def _parts(explanation: Explanation, level: Level, of: Of) -> list[dict[str, Any]]:
    if not explanation.answer:
        return []
    return [
        {**part, "by": level, "ignored": [{"kind": kind, "share": share} for kind, share in part["ignored"].items()]}
        for part in explanation.sources(level, of).to_dict()["parts"]
    ]


@cache
def new_columns() -> dict[str, Any]:
    """The columns that are added, with their types in Arrow."""
    with needed_for("ExplainBatch needs", "pyarrow"):
        import pyarrow as arrow
    text, whole, real, items = arrow.string(), arrow.int32(), arrow.float32(), arrow.list_
    place = {"text": text, "start": whole, "end": whole}
    source = arrow.struct({"name": text, **place, "share": real})
    ignored = arrow.struct({"kind": text, "share": real})
    part = {"by": text, "name": text, **place, "probability": real, "sources": items(source), "ignored": items(ignored)}
    return {
        "answer": text,
        "sources": items(arrow.struct(part)),
        "tokens": items(text),
        "token_ids": items(whole),
        "prompt_length": whole,
        "token_probabilities": items(real),
        "positions": items(items(whole)),
        "scores": items(items(real)),
        "rest": items(real),
        "error": text,
    }


class Rows:
    """The rows of a batch of an engine.

    Args:
        batch: A `pyarrow.Table`, a `pandas.DataFrame`, or a mapping of columns.

    Attributes:
        records: Each row, with Python's values.

    Raises:
        InvalidInputError: It is none of these.
    """

    def __init__(self, batch: Any):
        import pyarrow

        if isinstance(batch, pyarrow.Table):
            self._table = batch
        elif isinstance(batch, Mapping) or hasattr(batch, "columns"):  # pandas
            self._table = pyarrow.table({str(name): pyarrow.array(_column(batch[name])) for name in batch})
        else:
            raise InvalidInputError(
                f"A batch must be a pyarrow.Table, a pandas.DataFrame or a mapping of columns, got {type(batch).__name__}. "
                "With `datasets.map`, say `batched=True`."
            )
        self.records: list[dict[str, Any]] = self._table.to_pylist()

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return list(self._table.column_names)

    def with_columns(self, rows: Sequence[int], values: Sequence[Mapping[str, Any]], prefix: str) -> Any:
        """A `pyarrow.Table` of these rows, of which one may be there several times, and the new columns.

        Args:
            values: Of the new columns, for each row; None where one is missing.
            prefix: What the names of the new columns begin with.
        """
        import pyarrow

        table = self._table.take(pyarrow.array(rows, pyarrow.int64()))
        for name, kind in new_columns().items():
            column = pyarrow.array([value.get(name) for value in values], kind)
            table = table.append_column(prefix + name, column)
        return table


def _column(values: Any) -> Any:
    """A column for Arrow, which takes neither arrays of several dimensions nor arrays in arrays as lists."""
    if getattr(values, "ndim", 1) == 1 and getattr(values, "dtype", None) not in (None, object):
        return values
    return _plain(values)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(x) for name, x in value.items()}
    return [_plain(x) for x in value] if isinstance(value, list | tuple) else value
