"""`Sources`: the parts of an answer, and what each of them rests on."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any, overload

import torch

from ..checks.arguments import whole_number
from ..checks.optional import needed_for
from ..errors import InvalidInputError
from ..visualization.terminal import contrasted, listed, percent, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_LONGEST = 72  # characters of a text that is shown in one line
_BAR = "background:linear-gradient(to right,#9ecae1 {share},transparent {share});color:inherit"


@dataclass(frozen=True)
class Source:
    """A part of the prompt on which a part of the answer rests.

    Attributes:
        name: Of a span, message, tool, document or image; None for other units.
        text: Its text, without white space around it; that of an image is empty.
        start, end: Its characters in `Explanation.text`: `text[start:end]`. Of an image: those of its placeholders.
        share: Its score over the sum of the scores of all candidate sources.
    """

    name: str | None
    text: str
    start: int
    end: int
    share: float


@dataclass(frozen=True)
class Part:
    """A part of the answer.

    Attributes:
        name: `"thinking"`, `"tool call"` or `"answer"`, which it is in; None for the whole answer.
        text: Its text, without white space around it.
        start, end: Its characters in `Explanation.text`: `text[start:end]`.
        probability: Product of the probabilities of its tokens, each given all before it. It falls with the length.
        sources: Strongest first. The shares of all sources add up to 1.
        ignored: What is no source, by kind, as shares of all scores of the part: `"special"`, `"template"`, `"sink"` and
            `"own"` (see `Explanation.sources`), `"content"` (the rest of the prompt, if the sources are spans), `"weak"`
            (below a fifth of the part's largest score) and `"rest"` (not kept by `Explanation.compact`, and not known to be one
            of the others). What they do not hold is what the shares are shares of.
    """

    name: str | None
    text: str
    start: int
    end: int
    probability: float
    sources: list[Source]
    ignored: dict[str, float]


@dataclass(frozen=True, repr=False)
class Sources(Sequence[Part]):
    """What an answer rests on: a sequence of its parts, each with its sources. Printed, it is a list to read.

    Attributes:
        parts: The parts of the answer, in the order of the text.
        by: What the sources are: a level of units, or `"span"`.
        of: What the parts are.
        foil: The text that is contrasted with what was written: negative shares speak for it. None if there is none.

    Examples:
        >>> sources = explanation.sources(by="word", of="answer", k=2)
        >>> for part in sources:
        ...     print(len(part.sources), sorted(part.ignored))
        2 ['own', 'sink'...]
    """

    parts: list[Part]
    by: str
    of: str
    foil: str | None = None

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> list[Part]: ...
    def __getitem__(self, index: int | slice) -> Part | list[Part]:
        return self.parts[index]

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def render(self, top: int = 6) -> str:
        """Lines for a terminal: each part of the answer, below it its sources with share, name, characters and text.

        Args:
            top: At most so many sources of each part.

        Raises:
            InvalidInputError: `top` is no number of at least 0.

        Examples:
            >>> print(explanation.sources({"place": " Italy"}, of="answer").render().splitlines()[1])
              100 %  place  [15:20]  Italy
        """
        top = whole_number("top", top, 0)
        lines = [line for part in self.parts for line in _lines(part, top)]
        return "\n".join(lines if self.foil is None else [*lines, contrasted(self.foil)])

    __str__ = render
    __repr__ = render

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values.

        Examples:
            >>> list(explanation.sources().to_dict())
            ['by', 'of', 'foil', 'parts']
        """
        return {"by": self.by, "of": self.of, "foil": self.foil, "parts": [asdict(part) for part in self.parts]}

    def to_json(self) -> str:
        """`to_dict` as a JSON text.

        Examples:
            >>> explanation.sources(of="answer").to_json()[:40]
            '{"by": "sentence", "of": "answer", "foil...'
        """
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def to_dataframe(self) -> "DataFrame":
        """A table, one row for each part and source of it.

        Raises:
            MissingDependencyError: pandas is not installed.

        Examples:
            >>> list(explanation.sources().to_dataframe().columns)
            ['part', 'part_text', 'probability', 'source', 'source_text', 'start', 'end', 'share']
        """
        with needed_for("Tables need", "pandas"):
            import pandas
        columns = ["part", "part_text", "probability", "source", "source_text", "start", "end", "share"]
        rows = [
            (number, part.text, part.probability, source.name, source.text, source.start, source.end, source.share)
            for number, part in enumerate(self.parts)
            for source in part.sources
        ]
        return pandas.DataFrame(rows, columns=columns)

    def plot(self, path: str | os.PathLike[str] | None = None, **options: Any) -> "Figure":
        """A matplotlib figure: one row per source, in the order of the text, and one column per part of the answer.

        The cells are the shares; those of a column add up to 1. A cell is blank where a source has no share, or was not named
        because of `k`. Below the figure stands what is not counted, of several parts the average.

        Args:
            path: The file to write; the suffix says the format (`.png`, `.svg`, `.pdf`, ...).
            **options: `title`, `cmap` and `dpi`, as for `gradellm_hf.visualization.plot_heatmap`.

        Raises:
            MissingDependencyError: matplotlib is not installed.
            InvalidInputError: The answer is empty, nothing has a share, or an option is not usable.
            OSError: The file cannot be written.

        Examples:
            >>> sources = explanation.sources({"question": "The capital of", "place": " Italy"}, of="token")
            >>> sources.plot("sources.png", title="What each token rests on")
            <Figure size ...>
        """
        from ..visualization.plot import draw_shares

        rows = sorted({(source.start, source.end): source for part in self.parts for source in part.sources}.items())
        if not rows:
            reason = "no source has a share; ignore less, `ignore=()` for example" if self.parts else "the answer is empty"
            raise InvalidInputError(f"Nothing to plot: {reason}.")
        found = [{(source.start, source.end): source.share for source in part.sources} for part in self.parts]
        kinds = dict.fromkeys(kind for part in self.parts for kind in part.ignored)
        return draw_shares(
            torch.tensor([[shares.get(place, torch.nan) for shares in found] for place, _ in rows]),
            ([source.name or shortened(source.text) for _, source in rows], [shortened(part.text) for part in self.parts]),
            (f"source {self.by}", "answer" if self.of == "answer" else f"{self.of} of the answer"),
            path,
            ignored={kind: sum(part.ignored.get(kind, 0) for part in self.parts) / len(self.parts) for kind in kinds},
            foil=self.foil,
            written=True,
            **options,
        )

    def _repr_html_(self) -> str:
        return "".join(map(_html, self.parts))


def shortened(text: str, longest: int = _LONGEST) -> str:
    """The text in one line; of a long one the beginning and the end, in whole words where these are not too long."""
    text = " ".join(text.split())
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    begin, end = text[: half + 1], text[-half - 1 :]
    begin = begin[: begin.rfind(" ")] if " " in begin[half // 2 :] else begin[:half]
    end = end[end.find(" ") + 1 :] if " " in end[: half // 2] else end[1:]
    return f"{begin} \u2026 {end}"


def _lines(part: Part, top: int) -> Iterator[str]:
    yield visible(shortened(part.text))
    width = max((len(source.name or "") + 2 for source in part.sources[:top] if source.name), default=0)
    for source in part.sources[:top]:
        name = visible(source.name) if source.name else ""
        text = visible(shortened(source.text)) if source.text or not name else ""  # an image has a name only
        yield f"  {percent(source.share):>5}  {name:{width}}[{source.start}:{source.end}]  {text}".rstrip()
    if (further := len(part.sources) - top) > 0:
        yield f"         and {further} more"
    if part.ignored:
        yield f"         ({listed(part.ignored)})"


def _html(part: Part) -> str:
    rows = "".join(
        f'<tr><td style="{_BAR.format(share=f"{abs(source.share):.0%}")}">{percent(source.share)}</td>'
        f"<td>{escape(source.name or '')}</td><td>{source.start}:{source.end}</td>"
        f"<td>{escape(shortened(source.text))}</td></tr>"
        for source in part.sources
    )
    ignored = f"<caption>{escape(listed(part.ignored))}</caption>" if part.ignored else ""
    return f"<p>{escape(part.text)}</p><table>{ignored}<tbody>{rows}</tbody></table>"
