"""What a report knows of an explanation: the JSON that `web/scores.js` reads."""

from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate, groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks.arguments import choice
from ..errors import InvalidInputError
from ..text.owners import segments_of, stretches, written_range
from ..text.readable import Level, Readable, explained_rows
from ..text.rest import Rest
from ..text.shares import IGNORED, REST, THRESHOLD, Kind, checked_ignore, kinds
from ..text.units import Spans, span_ranges, unit_names, unit_ranges
from .packed import COARSE, FINE, Precision, packed
from .page_images import image_data

_LEVELS: tuple[Level, ...] = ("token", "word", "sentence")
_LABELS = {"span": "Documents"}  # of levels that are not just called by their plural
_LONG = 1500  # units of a text that opens by sentences
_OUTSIDE = "outside"  # a kind of this page: content that is in none of the spans
_IMAGE = "image"  # another one, so that images are shown exactly among themselves, whatever the text holds
#: What templates write at the beginning of a message, beside special tokens.
_ROLES = ("system", "developer", "user", "assistant", "model", "tool")


class Tested(Protocol):
    """Removals, as `gradellm_hf.results.removals` has them."""

    def to_dict(self) -> list[dict[str, Any]]: ...


def page_data(
    explanation: Readable,
    *,
    heading: str = "",
    facts: str = "",
    spans: Spans | None = None,
    ignore: Collection[Kind] = IGNORED,
    removals: Tested | None = None,
    opening: str | None = None,
    with_layers: bool = True,
) -> dict[str, Any]:
    """The data of one element of the page; see `html.report` for the arguments.

    Raises:
        InvalidInputError: As `html.report`.
    """
    border, ignored = explanation.prompt_length, checked_ignore(ignore)
    named = [] if spans is None else [(unit, name) for unit, name in zip(*span_ranges(explanation, spans)) if name is not None]
    levels = list(_levels(explanation, spans))
    found = _kinds(explanation, [unit for unit, _ in named])
    names = list(dict.fromkeys(found))
    classes = [names.index(kind) for kind in found]
    kept_only = explanation.rest is not None or explanation.layer_rest is not None
    columns = {kind: number for number, kind in enumerate([*names, *([REST] if kept_only else [])])}
    everywhere = torch.tensor([kind not in ignored for kind in found], dtype=torch.bool)
    inside = torch.tensor([kind != _OUTSIDE for kind in found], dtype=torch.bool)
    candidates = [everywhere, *([everywhere & inside] if named else [])]
    own = explanation.token_ids is None
    layers = explanation.layer_attributions if with_layers else None
    by_layer: list[dict[str, Any]] = []
    layer_rest = explanation.layer_rest

    def heatmap(scores: Tensor, rest: Rest | None, precision: Precision) -> dict[str, Any]:
        added = scores.new_zeros(len(scores), len(columns))
        for kind, sums in () if rest is None else rest.certain(found, scores, THRESHOLD, REST):
            added[:, columns[kind]] += sums
        return packed(scores, classes, candidates, precision, own=own, rest=added if kept_only else None)

    if layers is not None:
        indices = range(len(layers)) if explanation.layers is None else explanation.layers
        for index, scores in zip(indices, layers):
            left = None if layer_rest is None else layer_rest.of(len(by_layer))
            by_layer.append({"name": str(index), **heatmap(scores, left, COARSE)})
    signed = bool((explanation.attributions < 0).any())
    return {
        "heading": heading,
        "facts": facts,
        "tokens": explanation.tokens,
        "promptLength": border,
        "kinds": list(columns),
        "classes": classes,
        "marks": _marks(explanation),
        "unexplained": sorted(set(range(border, len(explanation.tokens))) - {border + n for n in explained_rows(explanation)}),
        "segments": _segments(explanation),
        "images": list(image_data(explanation)),
        "spans": [{"name": name, "first": first, "last": last} for (first, last), name in named],
        "probabilities": [float(f"{p:.4g}") for p in explanation.token_probabilities.tolist()],
        "level": explanation.level,
        "levels": levels,
        "opening": _opening(explanation, [level["name"] for level in levels], opening),
        "written": written_range(explanation) or (border, len(explanation.tokens)),
        "ignore": sorted(ignored),
        "threshold": THRESHOLD,
        "own": int(own),
        "signed": signed,
        "foil": explanation.foil if signed else None,
        "target": explanation.tokens[border] if border < len(explanation.tokens) else "",
        "summed": heatmap(explanation.attributions, explanation.rest, FINE),
        "layers": by_layer,
        "removals": list(_measured(explanation, removals)),
    }


def _levels(explanation: Readable, spans: Spans | None) -> Iterator[dict[str, Any]]:
    """The units that the page offers, from small to large. `of`: those of the answer, if they are others; `only`: what has no
    name is no source."""
    border, level = explanation.prompt_length, explanation.level
    is_known = level in _LEVELS

    def described(name: str, units: list[tuple[int, int]], **more: Any) -> dict[str, Any]:
        sizes = [end - start for start, end in units]
        return {"name": name, "label": _LABELS.get(name, f"{name.capitalize()}s"), "sizes": sizes, **more}

    if not is_known:
        units = [(i, i + 1) for i in range(len(explanation.tokens))]
        yield described(level, units, names=explanation.unit_names)
    for name in _LEVELS[_LEVELS.index(level) :] if is_known else ():
        yield described(name, explanation.units(name) if name != level or level == "token" else _single(explanation))
    if is_known and explanation.segments is not None:
        units = unit_ranges(explanation, "message", "sentence")
        names = [name if start < border else None for (start, _), name in zip(units, unit_names(explanation, units))]
        yield described("message", units, names=names, of="sentence")
    if spans is not None:
        units, found = span_ranges(explanation, spans)
        written = [unit for unit in unit_ranges(explanation, "sentence") if unit[0] >= border]
        yield described("span", units + written, names=[*found, *[None] * len(written)], of="sentence", only=True)


def _single(explanation: Readable) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(len(explanation.tokens))]


def _opening(explanation: Readable, levels: list[str], asked: str | None) -> int:
    if asked is not None:
        return levels.index(choice("opening", asked, tuple(levels)))
    wanted = "sentence" if len(explanation.tokens) > _LONG else "word"
    return levels.index(wanted) if wanted in levels else 0


def _kinds(explanation: Readable, spans: list[tuple[int, int]]) -> list[str]:
    seen = {i for image in explanation.images or [] for i in image.positions}
    found = [_IMAGE if kind == "content" and i in seen else kind for i, kind in enumerate(kinds(explanation))]
    if not spans:
        return found
    inside = {i for start, end in spans for i in range(start, end)}
    return [_OUTSIDE if kind in ("content", _IMAGE) and i not in inside else kind for i, kind in enumerate(found)]


def _marks(explanation: Readable) -> list[int]:
    """What is hidden unless asked for: special tokens, and what a template writes at the borders of messages."""
    border, is_mark = explanation.prompt_length, list(explanation.special)
    for kind, run in groupby(range(len(is_mark)), kinds(explanation).__getitem__):
        positions = list(run)
        lines = "".join(explanation.tokens[i] for i in positions).splitlines()
        if kind == "template" and all(line.strip() in ("", *_ROLES) for line in lines):
            for i in positions:
                is_mark[i] = True
    if all(is_mark[border:]):  # an answer of special tokens alone is shown
        is_mark[border:] = [False] * len(is_mark[border:])
    return [i for i, mark in enumerate(is_mark) if mark]


def _segments(explanation: Readable) -> list[dict[str, Any]]:
    """The messages, tools and documents of a chat and the parts of the answer, by their units."""
    segments, owner = segments_of(explanation), stretches(explanation)
    found = []
    for number, segment in enumerate(segments):
        inside = [i for i, part in enumerate(owner) if part == number]
        if inside:
            found.append({"name": segment["name"], "role": segment["role"], "first": inside[0], "last": inside[-1] + 1})
    return found


def _measured(explanation: Readable, removals: Tested | None) -> Iterable[dict[str, Any]]:
    if removals is None:
        return
    if not hasattr(removals, "to_dict"):
        raise InvalidInputError(
            f"`removals` must be what `GradELLM.removal_test` returned, or None, got {type(removals).__name__}."
        )
    bounds = list(accumulate(map(len, explanation.tokens), initial=0))
    for removal in removals.to_dict():
        part, others = removal["part"], removal["other_losses"]
        if part["end"] > bounds[-1]:
            raise InvalidInputError("`removals` are of another explanation: a part of them ends after the end of the text.")
        overlapping = [i for i in range(len(bounds) - 1) if bounds[i] < part["end"] and bounds[i + 1] > part["start"]]
        yield {
            "part": part["text"],
            "first": overlapping[0],
            "last": overlapping[-1] + 1,
            "removed": [{"text": source["name"] or source["text"], "share": source["share"]} for source in removal["removed"]],
            "loss": removal["loss"],
            "other": sum(others) / len(others) if others else None,
        }
