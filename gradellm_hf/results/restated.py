"""The same heatmaps in other units, on another scale, or followed through the generated text."""

import dataclasses
from collections.abc import Collection
from typing import Any, Literal, TypeVar

from ..checks.arguments import choice
from ..text.readable import Level, Readable
from ..text.shares import IGNORED_IN_SUMS, Kind, ignored_positions
from ..text.units import Spans, Unit, image_names, merged, span_ranges, unit_names, unit_ranges
from .kept import Keep, compacted
from .trace import traced

_Explanation = TypeVar("_Explanation", bound=Readable)


class Restated:
    """The methods of an `Explanation` that return another one."""

    def units(self: Readable, level: Level, generated: Level | None = None) -> list[Unit]:
        """Half-open ranges of tokens that cover the sequence in order, never across the border of the prompt.

        - `"token"`: tokens that make up one character are one unit.
        - `"word"`: letters, digits and combining marks in a row, with apostrophes inside (`don't`) and points inside numbers
          (`3.14`). Each Han character is a word. Kana, Thai and others that are written without spaces are not split.
          Punctuation in a row is one unit, and so is each emoji with its modifiers. Spaces belong to what follows. Line
          breaks stand alone.
        - `"sentence"`: ends at `.`, `!`, `?` or `…` before white space, at the full stops of Chinese, Japanese, Arabic, Urdu
          and Hindi, and at line breaks. Not at the points of common abbreviations (`Dr. Smith`), of initials and of the numbers
          of a list, nor before a small letter.
        - `"paragraph"`: ends at an empty line.
        - `"message"`: a message, tool, document or image of a chat, if they are known. In the generated text: thinking (between
          `<think>` and `</think>`), a tool call, or the answer.

        An image is one unit at every level but `"token"`. Messages, and these parts of the generated text, are never cut
        across: a unit is in one of them, or in the template. A special token is a unit of its own. A token that holds the end
        of a unit and the beginning of the next joins them.

        Args:
            level: The units of the prompt.
            generated: The units of the generated text; None: the same.

        Raises:
            InvalidInputError: There is no such level.

        Examples:
            >>> explanation.units("word")[:3]
            [(0, 1), (1, 2), (2, 3)]
        """
        return unit_ranges(self, level, generated)

    def aggregate(
        self: _Explanation,
        by: Level | Spans,
        *,
        generated: Level | Literal["answer"] | None = None,
        ignore: Collection[Kind] = IGNORED_IN_SUMS,
    ) -> _Explanation:
        """The explanation of larger units. Scores are summed over the tokens of a unit, both of sources and of generated ones.

        A generated unit can then contribute to itself: its later tokens rest on its earlier ones. What an answer rests on, as
        ranked and named shares, is in `sources`.

        Args:
            by: A level (see `units`), or spans of the prompt: `{name: span}` or a list of spans.
                A span is a pair (start, end) of character offsets in `text`, or a substring that occurs once in the prompt.
                The text between spans becomes units too, in which each special token is one of its own. See `unit_names`.
            generated: The units of the generated text. `"answer"`: all of it is one. None: the same level, or tokens if `by`
                are spans.
            ignore: What has no part in the sums; see `sources`. By default the first token, if it is not special: in a unit
                with others it would hide what they contribute.

        Returns:
            An explanation of `S'` units: `attributions` is `[N', S']`.

        Raises:
            InvalidInputError: There is no such level, or a span is not in the prompt, ambiguous, or overlaps another.

        Examples:
            >>> by_name = explanation.aggregate({"question": "The capital of", "place": " Italy"})
            >>> by_name.unit_names[:3]
            ['question', 'place', None]
        """
        border = self.prompt_length
        within: Any = "token" if generated == "answer" else generated
        names: list[str | None] | None = None
        if isinstance(by, str):
            level: Any = by
            units = unit_ranges(self, by, within)
            names = unit_names(self, units) if by == "message" else image_names(self, units) if self.images else None
        else:
            level = "span"
            units, names = span_ranges(self, by)
            units += [unit for unit in unit_ranges(self, "token", within) if unit[0] >= border]
        if generated == "answer":
            units = [unit for unit in units if unit[1] <= border] + [(border, len(self.tokens))] * (border < len(self.tokens))
        if names is not None:
            names = [*names, *[None] * len(units)][: len(units)]
        ignored = ignored_positions(self, ignore)
        layers, rest, layer_rest = self.layer_attributions, self.rest, self.layer_rest
        counted = _replaced(
            self,
            attributions=self.attributions.masked_fill(ignored, 0),
            layer_attributions=None if layers is None else layers.masked_fill(ignored, 0),
            rest=None if rest is None else rest.without(ignored),
            layer_rest=None if layer_rest is None else layer_rest.without(ignored),
        )
        return _replaced(self, **merged(counted, units), level=level, unit_names=names)

    def normalize(self: _Explanation, by: Literal["max", "sum"] = "max") -> _Explanation:
        """Scores divided, step by step, by the largest absolute score or by the sum of absolute scores.

        A step without scores stays zero. The heatmaps of single layers are divided by the same numbers as their sum.

        Args:
            by: `"max"`: the largest absolute score becomes 1. `"sum"`: the absolute scores add up to 1.

        Raises:
            InvalidInputError: There is no such normalisation.

        Examples:
            >>> explanation.normalize("sum").attributions.sum(-1).round(decimals=3)
            tensor([1., 1., 1., 1.])
        """
        choice("by", by, ("max", "sum"))
        size, layers, rest, layer_rest = self.attributions.abs(), self.layer_attributions, self.rest, self.layer_rest
        total = size.amax(-1, keepdim=True) if by == "max" else size.sum(-1, keepdim=True)
        if by == "sum" and rest is not None:
            total = total + rest.total[:, None]
        total = total.masked_fill(total == 0, 1)
        return _replaced(
            self,
            attributions=self.attributions / total,
            layer_attributions=None if layers is None else layers / total,
            rest=None if rest is None else rest.scaled(total),
            layer_rest=None if layer_rest is None else layer_rest.scaled(total),
        )

    def compact(self: _Explanation, keep: Keep = "top") -> _Explanation:
        """The same with the strongest scores only; the others are 0, and known as sums: `rest`.

        With `"top"`, a score is kept if it is at least a fifth of the largest of its step and kind: of the prompt's text,
        special tokens, the template, the first position, the answer's own text. Others never count in a share. So `sources`
        and `trace`, what is printed and the report say what they said before, for all levels, parts and `ignore`. With spans,
        after `aggregate`, or with a number, scores that are left out could change a share. Then it is stated how much they
        are: as `"rest"` in `Part.ignored`, "not kept" in words.

        A file of it is small: `save(path, keep="top")` does both.

        Args:
            keep: `"top"`; or a number: so many of the strongest scores of each step and kind.

        Returns:
            The explanation with 0 for what is not kept, and with `rest` (and `layer_rest`).

        Raises:
            InvalidInputError: `keep` is something else.

        Examples:
            >>> compact = explanation.compact(keep=1)
            >>> (compact.attributions > 0).sum().item() < (explanation.attributions > 0).sum().item()
            True
            >>> compact.rest.total.shape  # how much is left out of each step
            torch.Size([4])
        """
        return _replaced(self, **compacted(self, keep))

    def trace(self: _Explanation) -> _Explanation:
        """The same with heatmaps over the prompt only: what each generated token rests on there, also through earlier ones.

        An answer that first quotes or reasons rests on its own words, and these rest on the prompt. A row, without the first
        position and without scores below a fifth of its largest, divided by its sum, is what a token took from the prompt
        (`A_P`) and from the generated tokens before it (`A_G`). All paths through the generated text add up to

            R = A_P + A_G A_P + A_G^2 A_P + ... = (I - A_G)^-1 A_P

        so each row of `R` adds up to 1, unless it has no scores.

        Returns:
            The explanation with `attributions` `[N, S]` = `[R | 0]` and without those of layers.

        Raises:
            InvalidInputError: The units are not tokens (trace first, then `aggregate`), `steps=` left a token unexplained
                that comes before an explained one, or scores that count were not kept.

        Examples:
            >>> explanation.trace().attributions.sum(-1).round(decimals=3)
            tensor([1., 1., 1., 1.])
        """
        return _replaced(self, attributions=traced(self), layer_attributions=None, rest=None, layer_rest=None)


def _replaced(explanation: _Explanation, **fields: Any) -> _Explanation:
    this: Any = explanation
    found: _Explanation = dataclasses.replace(this, **fields)
    return found
