"""What contributed most, and what the answer rests on."""

from collections.abc import Collection
from typing import Any

from ..checks.arguments import whole_number
from ..errors import InvalidInputError
from ..text.readable import Contribution, Level
from ..text.shares import IGNORED, Kind, as_ignore, ignored_positions
from ..text.units import Spans
from .described import highlighted
from .ranking import Of, find_sources
from .sources import Sources


class Ranked:
    """The methods of an `Explanation` that name sources, strongest first."""

    def sources(
        self: Any,
        by: Level | Spans = "sentence",
        of: Of = "sentence",
        *,
        k: int | None = None,
        ignore: Collection[Kind] = IGNORED,
    ) -> Sources:
        """What the answer rests on: for each part of it, the sources of the prompt, strongest first.

        The share of a source is its score over the sum of the scores of all candidate sources; the shares of a part add up to
        1. A source's score is the sum over its tokens, and over the generated tokens of the part. Only scores of at least 20 %
        of the part's largest count: a long text has many small ones that mean nothing, and their sum grows with its length.
        With signed scores (of a contrast, say), shares add up to 1 by their size, and a negative one speaks against.

        Args:
            by: What the sources are: `"sentence"`, `"paragraph"`, `"message"`, `"word"` or `"token"` (see `units`), or spans of
                the prompt, as for `aggregate`.
            of: The parts of the generated text: `"answer"` (all of it), `"segment"` (thinking, tool calls, answer),
                `"paragraph"`, `"sentence"`, `"word"` or `"token"`. If only some steps are explained, a part is what lies
                between its first and its last explained token, and there are no parts without one.
            k: Name at most so many sources of each part. None: all that have a share.
            ignore: What is no source: `"special"` tokens; the `"template"` of a chat; the `"sink"`, which is position 0;
                the answer's `"own"` text. By default all of these. How much of all scores they hold is in `Part.ignored`.

        Raises:
            InvalidInputError: There is no such level; a span is not in the prompt, ambiguous, or overlaps another; messages are
                asked for and not known; no part has an explained token; or `k` or `ignore` is not usable.

        Examples:
            >>> sources = explanation.sources({"question": "The capital of", "place": " Italy"}, of="answer")
            >>> [source.name for source in sources[0].sources]
            ['question', 'place']
            >>> round(sum(source.share for source in sources[0].sources), 3)
            1.0
        """
        return find_sources(self, by, of, k, ignore)

    def to_highlighted_text(
        self: Any,
        by: Level | Spans = "word",
        of: Of = "answer",
        *,
        part: int = 0,
        ignore: Collection[Kind] = IGNORED,
    ) -> list[tuple[str, float | None]]:
        """The text in pieces, for Gradio's `HighlightedText`: the sources of a part with their shares, all else with None.

        Args:
            by: As for `sources`.
            of: As for `sources`.
            part: Which part of the generated text.
            ignore: As for `sources`.

        Returns:
            Pairs (text, share). Joined, the texts are `text`; the sizes of the shares add up to 1.

        Raises:
            InvalidInputError: There is no such part; else as `sources`.

        Examples:
            >>> explanation.to_highlighted_text({"place": "Italy"})
            [('The capital of ', None), ('Italy', 1.0), (' is...', None)]
        """
        parts = self.sources(by, of, ignore=ignore)
        part = whole_number("part", part, 0)
        if part >= len(parts):
            raise InvalidInputError(f"There is no part {part}: the generated text has {len(parts)}, from 0 on.")
        return highlighted(self.text, parts[part].sources)

    def top(
        self: Any, step: int, k: int = 10, *, ignore: Collection[Kind] = IGNORED, include_special: bool | None = None
    ) -> list[Contribution]:
        """The units that contributed most to generated unit `step`, strongest first; those with a score of 0 are left out.

        Args:
            step: 0 to `N - 1`; negative ones count from the end.
            k: At most so many, 0 or more.
            ignore: What is left out; see `sources`. By default special tokens, a chat's template, position 0 and the answer's
                own text.
            include_special: The old form of `ignore=()`, for one more release; False: of `ignore=["special"]`.

        Returns:
            Their positions, texts (of a named span: the name) and scores. Negative scores rank by their size.

        Raises:
            InvalidInputError: There is no such step, it is not explained, `k` is no number of units, or `ignore` holds
                something else.

        Examples:
            >>> explanation.top(0, k=1)
            [Contribution(position=..., token='...', score=...)]
        """
        step, k = whole_number("step", step), whole_number("k", k, 0)
        ignore = as_ignore(include_special, ignore)
        num_steps = len(self.attributions)
        if not -num_steps <= step < num_steps:
            raise InvalidInputError(f"There is no step {step}: {num_steps} steps are explained.")
        if self.explained is not None and not self.explained[step]:
            raise InvalidInputError(f"Step {step} is not explained: `steps` asked for others.")
        scores = self.attributions[step].masked_fill(ignored_positions(self, ignore), 0)
        order = scores.abs().argsort(descending=True, stable=True)[:k].tolist()
        names = self.unit_names or [None] * len(self.tokens)
        return [Contribution(i, names[i] or self.tokens[i], scores[i].item()) for i in order if scores[i] != 0]
