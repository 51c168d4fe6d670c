"""The folder of a job over many prompts: a list of its explanations, and one of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..dataset.explanations import DatasetExplanations
    from ..results.explanation import Explanation

_LONGEST = 70  # characters of a text in a list


def print_list(folder: Path, as_json: bool) -> None:
    """Prints one line per explanation and per failed prompt: its row, its id, and its text or what went wrong."""
    from ..dataset.explanations import load_dataset_explanations

    for entry in _entries(load_dataset_explanations(folder)):
        print(json.dumps(entry) if as_json else _line(entry))


def load_one(folder: Path, row: int | None, name: str | None, sequence: int | None) -> "Explanation":
    """The explanation of a prompt.

    Args:
        row: The prompt's position in the input; or
        name: its `id`.
        sequence: Which of several sequences.

    Raises:
        InvalidInputError: There is no such prompt, or it failed; several prompts have that `id`; or there are several
            sequences.
    """
    from ..dataset.explanations import load_dataset_explanations
    from ..errors import InvalidInputError

    explanations = load_dataset_explanations(folder)
    if name is not None:
        rows = [i for i, known in enumerate(explanations.ids) if known is not None and _text(known) == name]
        if len(rows) != 1:
            found = f"the rows {rows[:10]} have it; give one with --row" if rows else "no prompt has it"
            raise InvalidInputError(f"--id {name}: {found}.")
        (row,) = rows
    if row is None or not 0 <= row < len(explanations):
        raise InvalidInputError(f"There is no row {row}: {str(folder)!r} holds {len(explanations)} prompts, from row 0 on.")
    if row in explanations.errors:
        raise InvalidInputError(f"The prompt of row {row} failed: {explanations.errors[row]}")
    found = explanations[row]
    several: list[Explanation] = found if isinstance(found, list) else [found]
    if sequence is None and len(several) > 1:
        raise InvalidInputError(f"Row {row} has {len(several)} sequences: give one with --sequence 0 to {len(several) - 1}.")
    if not 0 <= (sequence or 0) < len(several):
        raise InvalidInputError(f"There is no sequence {sequence}: row {row} has {len(several)}, from 0 on.")
    return several[sequence or 0]


def _entries(explanations: "DatasetExplanations") -> Iterator[dict[str, Any]]:
    for row, found in enumerate(explanations):
        entry = {"row": row, "id": explanations.ids[row]}
        if not found:
            yield {**entry, "error": found.error}
        several = found if isinstance(found, list) else [found] if found else []
        for sequence, explanation in enumerate(several):
            tokens, border = explanation.tokens, explanation.prompt_length
            number = {"sequence": sequence} if len(several) > 1 else {}
            yield {**entry, **number, "prompt": "".join(tokens[:border]), "generated": "".join(tokens[border:])}


def _line(entry: dict[str, Any]) -> str:
    from ..visualization.terminal import visible

    parts = [str(entry["row"]) + (f".{entry['sequence']}" if "sequence" in entry else "")]
    if entry["id"] is not None:
        parts.append(_shortened(visible(_text(entry["id"]))))
    if "error" in entry:
        parts.append("failed: " + visible(entry["error"]))
    else:
        prompt, generated = visible(entry["prompt"]), visible(entry["generated"])
        parts += [prompt if len(prompt) <= _LONGEST else "\u2026" + prompt[-_LONGEST:], "\u2192 " + _shortened(generated)]
    return "  ".join(parts)


def _text(name: Any) -> str:
    return name if isinstance(name, str) else json.dumps(name)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "\u2026"
