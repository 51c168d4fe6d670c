"""From tokens to words, sentences, messages and named spans, by character offsets in the text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, groupby, pairwise
from typing import Any

import regex
import torch
from torch import Tensor

from ..checks.arguments import is_index, is_list
from ..errors import InvalidInputError
from .image_patches import ImagePatches
from .owners import image_parts, owners, segments_of, stretches
from .readable import Readable, Tokenised, explained_rows
from .rest import Rest
from .splitting import BEGINS

Span = tuple[int, int] | str
Spans = Mapping[str, Span] | Sequence[Span]
Unit = tuple[int, int]


def unit_ranges(explanation: Tokenised, level: str, generated: str | None = None) -> list[Unit]:
    """Half-open ranges of tokens that cover the sequence in order; see `Explanation.units`."""
    border, length = explanation.prompt_length, len(explanation.tokens)
    parts = stretches(explanation)
    return [
        *_ranges(explanation, parts, range(border), level),
        *_ranges(explanation, parts, range(border, length), level if generated is None else generated),
    ]


def unit_names(explanation: Readable, units: list[Unit]) -> list[str | None]:
    """The name of the message, or of the part of the answer, that each unit is in; None for the template and special tokens."""
    segments, owner = segments_of(explanation), stretches(explanation)
    first = [owner[start] for start, _ in units]
    return [None if i is None or i < 0 else segments[i]["name"] for i in first]


def image_names(explanation: Readable, units: list[Unit]) -> list[str | None]:
    """The name of the image that each unit is in; None for text."""
    images = {i: name for image, name in zip(explanation.images or [], _names_of_images(explanation)) for i in image.extent}
    return [images.get(start) for start, _ in units]


def _names_of_images(explanation: Readable) -> list[str]:
    segments = segments_of(explanation)
    return [segments[number]["name"] for number in image_parts(explanation)]


def span_ranges(explanation: Readable, spans: Spans) -> tuple[list[Unit], list[str | None]]:
    """Ranges of tokens that cover the prompt, and their names: one for each span, and more for the text between."""
    border = explanation.prompt_length
    prompt = "".join(explanation.tokens[:border])
    places = sorted((*_place(span, prompt, name), name) for name, span in _named(spans))
    for (_, end, name), (start, _, next_name) in pairwise(places):
        if start < end:
            raise InvalidInputError(f"The spans {name!r} and {next_name!r} overlap. Give spans without common characters.")
    owner = owners(explanation, [(start, end) for start, end, _ in places])[:border]
    parts = stretches(explanation)
    groups = [list(group) for _, group in groupby(range(border), lambda k: (owner[k], parts[k] if owner[k] is None else 0))]
    units = [(group[0], group[-1] + 1) for group in groups]
    found = [owner[start] for start, _ in units]
    if missing := [name for i, (*_, name) in enumerate(places) if i not in found]:
        raise InvalidInputError(f"The spans {missing} share all their tokens with another span. Make them longer.")
    return units, [None if i is None else places[i][2] for i in found]


def merged(explanation: Readable, units: list[Unit]) -> dict[str, Any]:
    """Everything of an explanation that has one entry per token, with one entry per unit instead.

    Scores and targets are summed. Probabilities are multiplied, which gives the probability of the whole unit. Of a generated
    unit, only the explained tokens count; it is explained if one of them is. A unit is special if all of its tokens are. No
    unit may cross the border between prompt and generated text.
    """
    border = explanation.prompt_length
    prompt_length = sum(end <= border for _, end in units)
    sizes = torch.tensor([end - start for start, end in units])
    unit_of = torch.arange(len(units)).repeat_interleave(sizes)
    step_of, num_steps = unit_of[border:] - prompt_length, len(units) - prompt_length

    def add_up(x: Tensor) -> Tensor:
        sources = x.new_zeros(*x.shape[:-1], len(units)).index_add_(-1, unit_of, x)
        return x.new_zeros(*x.shape[:-2], num_steps, len(units)).index_add_(-2, step_of, sources)

    targets, by_layer = explanation.target_scores, explanation.layer_attributions
    probabilities, rows = explanation.token_probabilities, torch.tensor(explained_rows(explanation), dtype=torch.long)
    explained = torch.zeros(num_steps, dtype=torch.bool).index_fill_(0, step_of[rows], True)
    probability = probabilities.new_zeros(num_steps).masked_fill_(explained, 1)

    def rest_of(rest: Rest | None) -> Rest | None:
        return None if rest is None else rest.merged(border, (prompt_length, num_steps), step_of)

    return {
        "tokens": ["".join(explanation.tokens[start:end]) for start, end in units],
        "special": [all(explanation.special[start:end]) for start, end in units],
        "token_ids": None,
        "prompt_length": prompt_length,
        "attributions": add_up(explanation.attributions),
        "layer_attributions": None if by_layer is None else add_up(by_layer),
        "rest": rest_of(explanation.rest),
        "layer_rest": rest_of(explanation.layer_rest),
        "token_probabilities": probability.scatter_reduce_(0, step_of[rows], probabilities[rows], "prod"),
        "target_scores": None if targets is None else targets.new_zeros(num_steps).index_add_(0, step_of, targets),
        "explained": None if explanation.explained is None else explained.tolist(),
        "images": _joined_images(explanation, unit_of),
    }


def _joined_images(explanation: Readable, unit_of: Tensor) -> list[ImagePatches] | None:
    """The images by their units: where single tokens were is not known any more, unless each is a unit."""
    if explanation.images is None:
        return None
    found = []
    for image in explanation.images:
        positions = unit_of[image.positions].tolist()
        joined = sorted(set(positions))
        boxes = image.boxes if joined == positions else None
        found.append(replace(image, positions=joined, boxes=boxes))
    return found


def _ranges(explanation: Tokenised, parts: list[int | None], positions: range, level: str) -> list[Unit]:
    """Units of the tokens at these positions; none crosses the border of a part of the text."""
    begins_of = BEGINS.get(level) if isinstance(level, str) else None
    if begins_of is None:
        raise InvalidInputError(f"The level of units must be one of {list(BEGINS)}, got {level!r}.")
    begins: list[int] = []
    images = () if level == "token" else image_parts(explanation)
    for part, group in groupby(positions, lambda k: parts[k]):
        first, *others = group
        if part in images:
            begins.append(first)
            continue
        stretch = explanation.tokens[first : first + 1 + len(others)]
        offsets = accumulate(map(len, stretch), initial=0)
        text_begins = begins_of("".join(stretch))
        # A token without text belongs to the one before it, or to the one after it if it is the first.
        begins += [
            first + k for k, (piece, at) in enumerate(zip(stretch, offsets)) if k == 0 or (piece and at and at in text_begins)
        ]
    return list(pairwise([*begins, positions.stop])) if begins else []


def _named(spans: Spans) -> Iterator[tuple[str, Span]]:
    if isinstance(spans, Mapping):
        yield from spans.items()
    elif is_list(spans):
        yield from ((f"span {i}", span) for i, span in enumerate(spans, start=1))
    else:
        raise InvalidInputError(f"Spans are a dict or a list of (start, end) pairs and substrings, got {spans!r}.")


def _place(span: Any, prompt: str, name: str) -> tuple[int, int]:
    """The characters of a span in the text of the prompt."""
    if isinstance(span, str):
        starts = [match.start() for match in regex.finditer(regex.escape(span), prompt)] if span else []
        if len(starts) != 1:
            found = f"is {len(starts)} times" if starts else "is not"
            hint = f", from characters {starts[:5]} on" if starts else ""
            raise InvalidInputError(
                f"The span {name!r} = {span!r} {found} in the prompt{hint}. Give a substring that occurs once, or (start, end) "
                "character offsets in `text`."
            )
        return starts[0], starts[0] + len(span)
    if is_list(span) and len(span) == 2 and all(map(is_index, span)):
        start, end = span
        if 0 <= start < end <= len(prompt):
            return start, end
    raise InvalidInputError(
        f"The span {name!r} must be a substring of the prompt or a pair (start, end) of character offsets in it, 0 <= start < "
        f"end <= {len(prompt)}; got {span!r}."
    )
