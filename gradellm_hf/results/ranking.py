"""`Explanation.sources`: which parts an answer has, what they rest on, and how much."""

from bisect import bisect_left
from collections.abc import Collection
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks.arguments import choice, whole_number
from ..errors import InvalidInputError
from ..text.owners import segments_of, stretches, written_range
from ..text.readable import Level, Readable, explained_rows
from ..text.shares import Kind, checked_ignore, counted_scores, ignored_positions, left_out, shares
from ..text.units import Spans, Unit, image_names, span_ranges, unit_names, unit_ranges
from .sources import Part, Source, Sources

Of = Literal["answer", "segment", "paragraph", "sentence", "word", "token"]
_Named = list[tuple[Unit, str | None]]


def find_sources(explanation: Readable, by: Level | Spans, of: Of, k: int | None, ignore: Collection[Kind]) -> Sources:
    """See `Explanation.sources`."""
    choice("of", of, get_args(Of))
    most = len(explanation.tokens) if k is None else whole_number("k", k, 1, none="all")
    offsets = list(accumulate(map(len, explanation.tokens), initial=0))
    units, parts = _candidates(explanation, by, ignore), _parts(explanation, of)
    ignored = ignored_positions(explanation, ignore)
    candidates = _covered([unit for unit, _ in units], len(ignored)) & ~ignored
    known = [explanation.prompt_length + row for row in explained_rows(explanation)]
    in_image = {i for image in explanation.images or [] for i in image.extent}

    def text_of(start: int, end: int) -> tuple[str, int, int]:
        if start in in_image:
            return "", offsets[start], offsets[end]
        text = explanation.text[offsets[start] : offsets[end]]
        first = offsets[start] + len(text) - len(text.lstrip())
        return text.strip(), first, max(first, offsets[end] - len(text) + len(text.rstrip()))

    def part(unit: Unit, name: str | None) -> Part:
        rows = torch.tensor(known[bisect_left(known, unit[0]) : bisect_left(known, unit[1])]) - explanation.prompt_length
        scores = explanation.attributions[rows]
        counted = counted_scores(scores, candidates, together=True)
        total = counted.sum(0)
        share = shares(torch.stack([total[start:end].sum() for (start, end), _ in units]) if units else total[:0])
        order = share.abs().argsort(descending=True, stable=True)[:most].tolist()
        return Part(
            name,
            *text_of(*unit),
            probability=explanation.token_probabilities[rows].prod().item(),
            sources=[Source(units[i][1], *text_of(*units[i][0]), share=share[i].item()) for i in order if share[i] != 0],
            ignored=left_out(explanation, scores, candidates, counted, rows),
        )

    return Sources([part(*named) for named in parts], by=by if isinstance(by, str) else "span", of=of, foil=explanation.foil)


def _candidates(explanation: Readable, by: Any, ignore: Collection[Kind]) -> _Named:
    """The units that may be sources, with their names. With spans, these only; with own text, its parts or units too."""
    border = explanation.prompt_length
    if isinstance(by, str):
        if by == "message" and explanation.segments is None:
            raise InvalidInputError(
                "The messages are not known. They are for chats that `GradELLM.explain` wrote with the template, unless the "
                "template changes with what the messages say. Give their texts as spans, {name: text}."
            )
        units = unit_ranges(explanation, by)
        names = unit_names(explanation, units) if by == "message" else image_names(explanation, units)
        found = list(zip(units, names))
    else:
        own = unit_ranges(explanation, "message")
        found = [(unit, name) for unit, name in zip(*span_ranges(explanation, by)) if name is not None]
        found += [(unit, name) for unit, name in zip(own, unit_names(explanation, own)) if unit[0] >= border]
    return found if "own" not in checked_ignore(ignore) else [(unit, name) for unit, name in found if unit[0] < border]


def _parts(explanation: Readable, of: Of) -> _Named:
    """The parts of the generated text, each from its first explained token to its last one; those without one are left out.

    Raises:
        InvalidInputError: All are left out.
    """
    parts, border, known = _written_parts(explanation, of), explanation.prompt_length, explained_rows(explanation)
    found = []
    for (start, end), name in parts:
        if rows := known[bisect_left(known, start - border) : bisect_left(known, end - border)]:
            found.append(((border + rows[0], border + rows[-1] + 1), name))
    if parts and not found:
        first, last = parts[0][0][0] - border, parts[-1][0][1] - border - 1
        raise InvalidInputError(
            f"No token of the answer is explained: `steps` asked for others. The answer's steps are {first} to {last}."
        )
    return found


def _written_parts(explanation: Readable, of: Of) -> _Named:
    """The parts of the generated text. Special tokens, tags and the white space around them are in none of them."""
    border = explanation.prompt_length
    if of == "answer":
        whole = written_range(explanation)
        return [] if whole is None else [(whole, None)]
    segments, owner = segments_of(explanation), stretches(explanation)
    units = unit_ranges(explanation, "message" if of == "segment" else of)
    return [
        (unit, segments[number]["name"])
        for unit in units
        if unit[0] >= border and (number := owner[unit[0]]) is not None and number >= 0
    ]


def _covered(units: list[Unit], length: int) -> Tensor:
    covered = torch.zeros(length, dtype=torch.bool)
    for start, end in units:
        covered[start:end] = True
    return covered
