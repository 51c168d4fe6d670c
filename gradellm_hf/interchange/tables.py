"""Explanations as tables, in memory and in Parquet files."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..checks.files import write_atomically
from ..checks.optional import needed_for
from ..errors import InvalidInputError
from ..results.explanation import Explanation
from ..visualization.table import table

if TYPE_CHECKING:
    from pandas import DataFrame


def to_dataframe(explanations: Explanation | Sequence[Explanation]) -> "DataFrame":
    """A long table: one row per sequence, step, and position before that step.

    Columns: `sequence`, `step` (`n`), `generated_position` (`P + n`), `generated_token`, `probability` (of that token),
    `target_score` (if known), `position`, `token`, `name` (of spans and messages), `score`, `share` (0 for what is no source;
    see `Explanation.sources`), `kind` (`"content"`, or why it is none), `in_prompt`, `special`. Larger units (after
    `aggregate`) also contribute to themselves, and have a row for that.

    Args:
        explanations: One sequence or several.

    Raises:
        InvalidInputError: They are no explanations.
        MissingDependencyError: pandas is not installed.

    Examples:
        >>> table = to_dataframe(explanation)
        >>> table[["step", "position", "token"]].head(2)
           step  position     token
        0     0         0       The
        1     0         1   capital
    """
    return table(listed(explanations))


def save_parquet(explanations: Explanation | Sequence[Explanation], path: str | os.PathLike[str]) -> None:
    """Writes the table of `to_dataframe` to a Parquet file.

    Args:
        explanations: One sequence or several.
        path: The file.

    Raises:
        InvalidInputError: They are no explanations.
        MissingDependencyError: pandas or pyarrow is not installed.
        OSError: The file cannot be written.

    Examples:
        >>> save_parquet([explanation, explanation], "answers.parquet")
    """
    frame = to_dataframe(explanations)
    with needed_for("Parquet needs", "pyarrow"):
        content = frame.to_parquet(None, index=False)
    write_atomically(path, content)


def listed(explanations: Explanation | Sequence[Explanation]) -> list[Explanation]:
    """One explanation or several, as a list.

    Raises:
        InvalidInputError: They are no explanations, or none.
    """
    if isinstance(explanations, Explanation):
        return [explanations]
    listed = list(explanations) if isinstance(explanations, Iterable) and not isinstance(explanations, str) else []
    if not listed:
        raise InvalidInputError(f"`explanations` must be an Explanation or a list of them, at least one; got {explanations!r}.")
    for position, explanation in enumerate(listed):
        if not isinstance(explanation, Explanation):
            raise InvalidInputError(
                f"`explanations[{position}]` must be an Explanation, got {type(explanation).__name__}. Leave out prompts that "
                "failed, and write a list of lists as one list."
            )
    return listed
