"""What readers get of an explanation: a table, a page, a figure, lines of text, JSON."""

import json
import os
from typing import TYPE_CHECKING, Any

from ..checks.files import write_atomically
from .described import described

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class Shown:
    """The methods of an `Explanation` that show it."""

    def to_dataframe(self: Any) -> "DataFrame":
        """A long table, one row per step and position before it; see `gradellm_hf.interchange.to_dataframe`.

        Examples:
            >>> len(explanation.to_dataframe())  # 5 + 6 + 7 + 8 positions before the four generated tokens
            26
        """
        from ..visualization.table import table

        return table([self])

    def to_html(self: Any, path: str | os.PathLike[str] | None = None, **options: Any) -> str:
        """A self-contained interactive page, also written to `path` if given; see `visualization.html.report`.

        Args:
            path: The file to write.
            **options: As for `report`: `title`, `spans`, `ignore`, `removals`, `compare`, `opening`, `fragment`.

        Raises:
            InvalidInputError: An option is not usable.
            OSError: The file cannot be written.

        Examples:
            >>> page = explanation.to_html("answer.html", title="Where is Rome?")
            >>> by_sentence = explanation.to_html(compare=explanation.aggregate("sentence"))
        """
        from ..visualization.html import report

        page = report(self, **options)
        if path is not None:
            write_atomically(path, page.encode())
        return page

    def plot(self: Any, path: str | os.PathLike[str] | None = None, **options: Any) -> "Figure":
        """A matplotlib figure, also written to `path` if given; see `visualization.plot.plot_heatmap`.

        Args:
            path: The file to write.
            **options: As for `plot_heatmap`.

        Raises:
            MissingDependencyError: matplotlib is not installed.
            InvalidInputError: There is nothing to show, or an option is not usable.
            OSError: The file cannot be written.

        Examples:
            >>> figure = explanation.plot("answer.png")
        """
        from ..visualization.plot import plot_heatmap

        return plot_heatmap(self, path, **options)

    def render(self: Any, **options: Any) -> str:
        """Lines for a terminal; see `visualization.terminal.render`.

        Args:
            **options: As for `render`.

        Raises:
            InvalidInputError: `top` is no number of at least 0.

        Examples:
            >>> len(explanation.render(top=2).splitlines())  # one line per generated token, and what is not shown
            5
        """
        from ..visualization.terminal import render

        return render(self, **options)

    def to_dict(self: Any, top: int = 6) -> dict[str, Any]:
        """The explanation as JSON values: texts, the character offsets of all units in `text`, scores to six digits.

        If only the strongest scores were kept, the `rest` of a step is the sum of the others, which are 0 here; else None.

        Args:
            top: How many of the strongest sources of each step are named.

        Raises:
            InvalidInputError: `top` is no number of at least 0.

        Examples:
            >>> explanation.to_dict()["offsets"][:2]
            [[0, 3], [3, 11]]
        """
        return described(self, top)

    def to_json(self: Any, top: int = 6) -> str:
        """`to_dict` as a JSON text.

        Args:
            top: As for `to_dict`.

        Raises:
            InvalidInputError: `top` is no number of at least 0.

        Examples:
            >>> import json
            >>> json.loads(explanation.to_json())["prompt"]
            'The capital of Italy is'
        """
        return json.dumps(self.to_dict(top), ensure_ascii=False)

    def _repr_html_(self: Any) -> str:
        from ..visualization.html import snippet

        return snippet(self)
