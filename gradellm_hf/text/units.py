"""From tokens to words, sentences and named spans, by character offsets in the text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import regex
import torch
from torch import Tensor

from ..checks.arguments import is_index, is_list
from ..errors import InvalidInputError
from .readable import Readable, Tokenised

Span = tuple[int, int] | str
Spans = Mapping[str, Span] | Sequence[Span]
Unit = tuple[int, int]

_LETTERS = r"[[\w\p{M}\u200c]--\p{Han}]"
_WORD = regex.compile(
    rf"""
    (?: [^\S\r\n]*+ [\r\n]+ )+
    | [^\S\r\n]*+ (?:
        \p{{Han}}\p{{M}}*
        | {_LETTERS}+ (?: (?: ['\u2019\u200d] | (?<=\p{{Nd}})[.,](?=\p{{Nd}}) ) {_LETTERS}+ )*
        | [\p{{P}}[\p{{S}}&&\p{{ASCII}}]]+ \p{{M}}*
        | (?!\s)\X
    )
    | \s+
    """,
    regex.VERBOSE | regex.VERSION1,
)
_CLOSING = r"""["'\p{Pe}\p{Pf}]*+"""
_FULL_STOPS = r"[\u3002\uff01\uff1f\uff61\u061f\u06d4\u0964\u0965]"  # Chinese and Japanese, Arabic and Urdu, Hindi
_STOP = rf"(?: (?<![.!?…])[.!?…]++ {_CLOSING} (?=\s|\Z) | {_FULL_STOPS}++ {_CLOSING} )"
_LINE_END = r"(?: (?<![^\S\r\n])[^\S\r\n]*+ [\r\n]+ )"  # runs are tried from their beginning only: linear time
_SENTENCE = regex.compile(
    rf"(?: .*? (?: {_STOP} {_LINE_END}* | {_LINE_END}+ ) | .+ )", regex.VERBOSE | regex.VERSION1 | regex.DOTALL
)


def unit_ranges(explanation: Tokenised, level: str, generated: str | None = None) -> list[Unit]:
    """Half-open ranges of tokens that cover the sequence in order; see `Explanation.units`."""
    border, length = explanation.prompt_length, len(explanation.tokens)
    return [
        *_ranges(explanation, 0, border, level),
        *_ranges(explanation, border, length, level if generated is None else generated),
    ]


def span_ranges(explanation: Readable, spans: Spans) -> tuple[list[Unit], list[str | None]]:
    """Ranges of tokens that cover the prompt, and their names: one for each span, and more for the text between."""
    offsets = [0, *accumulate(map(len, explanation.tokens[: explanation.prompt_length]))]
    prompt = explanation.text[: offsets[-1]]
    places = sorted((*_place(span, prompt, name), name) for name, span in _named(spans))
    for (_, end, name), (start, _, next_name) in pairwise(places):
        if start < end:
            raise InvalidInputError(f"The spans {name!r} and {next_name!r} overlap. Give spans without common characters.")
    owners: list[int | None] = []
    for start, end in pairwise(offsets):
        visible = start + len(prompt[start:end]) - len(prompt[start:end].lstrip())  # a token's leading space counts little
        start = visible if visible < end else start
        owners.append(next((i for i, (a, b, _) in enumerate(places) if a < max(end, start + 1) and start < b), None))
    special = explanation.special

    def begins_unit(k: int) -> bool:
        if k == 0 or owners[k] != owners[k - 1]:
            return True
        return owners[k] is None and (special[k] or special[k - 1])

    begins = list(filter(begins_unit, range(len(owners))))
    units = list(pairwise([*begins, len(owners)]))
    found = [owners[k] for k in begins]
    if missing := [name for i, (*_, name) in enumerate(places) if i not in found]:
        raise InvalidInputError(f"The spans {missing} share all their tokens with another span. Make them longer.")
    return units, [None if i is None else places[i][2] for i in found]


def merged(explanation: Readable, units: list[Unit]) -> dict[str, Any]:
    """Everything of an explanation that has one entry per token, with one entry per unit instead.

    Scores and targets are summed. Probabilities are multiplied, which gives the probability of the whole unit. A unit is
    special if all of its tokens are. No unit may cross the border between prompt and generated text.
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
    probabilities = explanation.token_probabilities
    return {
        "tokens": ["".join(explanation.tokens[start:end]) for start, end in units],
        "special": [all(explanation.special[start:end]) for start, end in units],
        "token_ids": None,
        "prompt_length": prompt_length,
        "attributions": add_up(explanation.attributions),
        "layer_attributions": None if by_layer is None else add_up(by_layer),
        "token_probabilities": probabilities.new_ones(num_steps).scatter_reduce_(0, step_of, probabilities, "prod"),
        "target_scores": None if targets is None else targets.new_zeros(num_steps).index_add_(0, step_of, targets),
    }


def _ranges(explanation: Tokenised, first: int, last: int, level: str) -> list[Unit]:
    """Units of the tokens `first:last`. Special tokens are units of their own."""
    begins_of = _BEGINS.get(level) if isinstance(level, str) else None
    if begins_of is None:
        raise InvalidInputError(f"The level of units must be one of {sorted(_BEGINS)}, got {level!r}.")
    tokens, special = explanation.tokens, explanation.special
    begins: list[int] = []
    while first < last:
        end = first + 1
        if not special[first]:
            while end < last and not special[end]:
                end += 1
        stretch = tokens[first:end]
        offsets = accumulate(map(len, stretch), initial=0)
        text_begins = begins_of("".join(stretch))
        # A token without text belongs to the one before it, or to the one after it if it is the first.
        begins += [
            first + k for k, (piece, at) in enumerate(zip(stretch, offsets)) if k == 0 or (piece and at and at in text_begins)
        ]
        first = end
    return list(pairwise([*begins, last])) if begins else []


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


_BEGINS: dict[str, Callable[[str], Any]] = {
    "token": lambda text: range(len(text)),
    "word": lambda text: {match.start() for match in _WORD.finditer(text)},
    "sentence": lambda text: {match.start() for match in _SENTENCE.finditer(text)},
}
