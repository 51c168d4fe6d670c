"""Shares as a picture: generated units beside the text before them, or the sources of an answer beside its parts."""

import io
import os
import textwrap
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks.arguments import string, whole_number
from ..checks.files import write_atomically
from ..checks.optional import needed_for
from ..errors import InvalidInputError
from ..text.readable import Readable, explained_rows
from ..text.shares import IGNORED, Kind, as_ignore, checked_ignore, counted_scores, ignored_positions, left_out, shares
from .terminal import cell_width, contrasted, listed, percent, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Chosen by hand, by looking at figures.
_LARGEST = 16.0  # inches, in width and in height: 2400 pixels at 150 dpi
_NARROWEST, _LOWEST = 5.0, 2.6  # inches: room for the bar of colours and for what is not counted
_LABEL_ROOM = 0.17  # inches per tick label: its 7 points are 0.1 inch
_LETTER = 0.1  # inches per letter of a label, the widest one
_LINE = 0.16  # inches per line of the title, and of what is not counted
_LONGEST_LABEL = 28  # columns of a terminal: Chinese characters take two
_WRITTEN = (0.42, 0.22)  # inches: a cell in which its share is written
# Of these fonts, the installed ones are used; together they cover most scripts. The first comes with matplotlib.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK SC",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans Devanagari",
    "Arial Unicode MS",
)


def plot_heatmap(
    explanation: Readable,
    path: str | os.PathLike[str] | None = None,
    *,
    ignore: Collection[Kind] = IGNORED,
    include_special: bool | None = None,
    title: str | None = None,
    cmap: str | None = None,
    dpi: int = 150,
) -> "Figure":
    """A heatmap, one row per explained unit and one column per source. The colour is the share, as in `Explanation.sources`.

    A share is a score over the sum of the scores of all candidate sources; those of a row add up to 1. Below the figure stands
    what is not counted. The figure grows with the text, up to 16 inches. If there is no room for every label, evenly spaced
    ones are written. It does not use `pyplot`: nothing is left open, and no backend is chosen.

    Args:
        explanation: What to show.
        path: The file to write; the suffix says the format (`.png`, `.svg`, `.pdf`, ...).
        ignore: What is no source, and gets no column; see `Explanation.sources`. Ignored special tokens get no row, either.
        include_special: The old form of `ignore=()`, for one more release; False: of `ignore=["special"]`.
        title: Of the figure.
        cmap: matplotlib's name of a colour map. By default one hue, or two if there are negative scores.
        dpi: Resolution of pixel formats.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidInputError: There is nothing to show, `ignore` holds something else, `dpi` is no number of at least 1, the title
            is no text, or there is no such format.

    Examples:
        >>> plot_heatmap(explanation, "answer.png", title="Where is Rome?")
        <Figure size ...>
    """
    ignored = checked_ignore(as_ignore(include_special, ignore))
    border, length = explanation.prompt_length, len(explanation.tokens)
    candidates = ~ignored_positions(explanation, ignored)
    explained = [border + n for n in explained_rows(explanation)]
    rows = [i for i in explained if not (explanation.special[i] and "special" in ignored)]
    columns = [i for i in range(length - 1) if candidates[i]]
    if not rows or not columns:
        raise InvalidInputError(
            f"Nothing to plot: {len(rows)} generated units and {len(columns)} sources are shown. Explain generated text, "
            "or ignore less: `ignore=()` shows every source."
        )
    own = torch.eye(length, dtype=torch.bool)[border:]  # a larger unit rests on itself, too
    scores = explanation.attributions.masked_fill(own, 0)
    counted = counted_scores(scores, candidates)
    names = explanation.unit_names or [None] * length
    texts = [name or token for name, token in zip(names, explanation.tokens)]
    return draw_shares(
        shares(counted)[[i - border for i in rows]][:, columns],
        ([texts[i] for i in rows], [texts[i] for i in columns]),
        (f"generated {explanation.level}", f"source {explanation.level}"),
        path,
        ignored=left_out(explanation, scores, candidates, counted),
        foil=explanation.foil,
        border=sum(i < border for i in columns),
        title=title,
        cmap=cmap,
        dpi=dpi,
    )


def draw_shares(
    values: Tensor,
    labels: tuple[Sequence[str], Sequence[str]],
    axis_labels: tuple[str, str],
    path: str | os.PathLike[str] | None,
    *,
    ignored: Mapping[str, float],
    foil: str | None,
    border: int = 0,
    written: bool = False,
    title: str | None = None,
    cmap: str | None = None,
    dpi: int = 150,
) -> "Figure":
    """Shares as a figure that has room for its labels.

    Args:
        values: `[rows, columns]`; NaN where there is none.
        labels: Of the rows, and of the columns.
        axis_labels: What the rows are, and what the columns are.
        path: The file to write.
        ignored: What is not counted; see `listed`.
        foil: What negative shares speak for; None if there is no contrast.
        border: A line stands before this column; 0: none.
        written: Whether the shares are written into their cells, if these are large enough.
        title, cmap, dpi: As for `plot_heatmap`.

    Raises:
        MissingDependencyError, InvalidInputError: As `plot_heatmap`.
    """
    dpi = whole_number("dpi", dpi, 1)
    string("title", title, none="no title")
    with needed_for("Plots need", "matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    fonts = [font for font in _FONTS if font in installed]
    num_rows, num_columns = values.shape
    row_labels, column_labels = [[_label(text) for text in texts] for texts in labels]
    cell_x, cell_y = _WRITTEN if written else (_LABEL_ROOM, _LABEL_ROOM)
    beside = 1.4 + _LETTER * max(map(cell_width, row_labels))  # row labels, bar of colours
    width = min(_LARGEST, max(_NARROWEST, beside + cell_x * num_columns))
    heading = _wrapped(title or "", 8 * width)
    notes = [contrasted(_label(foil))] if foil is not None else []
    notes += [f"({listed(ignored)})".replace(" %", "\u00a0%")] if ignored else []
    note = "\n".join(_wrapped(line, 12 * width) for line in notes)
    lines = (heading + "\n" + note).count("\n") + 1
    longest = _LETTER * max(map(cell_width, column_labels))
    is_level = longest <= (width - beside) / num_columns  # there is room for the labels of columns side by side
    below = 0.5 + (_LINE if is_level else longest) + _LINE * lines
    height = min(_LARGEST, max(_LOWEST, below + cell_y * num_rows))
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    highest = values.nan_to_num().abs().max().item() or 1.0
    signed = bool((values < 0).any())
    image = axes.imshow(
        values.numpy(),
        aspect="auto",
        interpolation="nearest",
        vmin=-highest if signed else 0,
        vmax=highest,
        cmap=("PuOr" if signed else "Blues") if cmap is None else cmap,
    )
    for axis, texts, room in ((axes.xaxis, column_labels, width - beside), (axes.yaxis, row_labels, height - below)):
        every = -(-len(texts) // max(1, round(room / _LABEL_ROOM)))
        axis.set_ticks(range(0, len(texts), every), texts[::every], fontsize=7, family=fonts, parse_math=False)
    axes.tick_params(axis="x", rotation=0 if is_level else 90, length=2)
    axes.tick_params(axis="y", length=2)
    axes.set_ylabel(axis_labels[0], fontsize=8)
    axes.set_xlabel(axis_labels[1], fontsize=8)
    if 0 < border < num_columns:
        axes.axvline(border - 0.5, color="0.35", linewidth=0.8, linestyle=":")
    if written and (width - beside) / num_columns >= cell_x - 0.01 and (height - below) / num_rows >= cell_y - 0.01:
        colours = image.to_rgba(values.numpy())
        for row, column in (~values.isnan()).nonzero().tolist():
            share = values[row, column].item()
            dark = sum(colours[row, column, :3]) < 1.5
            axes.text(column, row, percent(share), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.01, shrink=min(1.0, 2.4 / height), aspect=15)
    bar.ax.set_title("share", fontsize=8)
    bar.ax.yaxis.set_major_formatter(lambda share, _: percent(share))
    bar.ax.tick_params(labelsize=7)
    style: dict[str, Any] = {"x": 0.01, "ha": "left", "family": fonts, "parse_math": False}
    figure.suptitle(heading, fontsize=10, **style)
    figure.supxlabel(note, fontsize=7, color="0.35", **style)
    if path is not None:
        with warnings.catch_warnings():
            # Fonts lack some scripts. A box in a label is enough, without one warning per character.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            write_figure(figure, path)
    return figure


def write_figure(figure: "Figure", path: str | os.PathLike[str], **options: Any) -> None:
    """Writes a figure, atomically, in the format that the suffix names; PNG if there is no suffix.

    Args:
        **options: For `Figure.savefig`.

    Raises:
        InvalidInputError: There is no such format.
    """
    known, suffix = sorted(figure.canvas.get_supported_filetypes()), Path(path).suffix.lower().removeprefix(".") or "png"
    if suffix not in known:
        raise InvalidInputError(f"{os.fspath(path)!r}: figures are written as {', '.join(known)}, not as {suffix}.")
    content = io.BytesIO()
    figure.savefig(content, format=suffix, **options)
    write_atomically(path, content.getvalue())


def _label(text: str) -> str:
    """What is visible of the text; of a long one the beginning and the end."""
    text = visible(text)
    if cell_width(text) <= _LONGEST_LABEL:
        return text
    half = (_LONGEST_LABEL - 3) * len(text) // cell_width(text) // 2
    return f"{text[:half].rstrip()} \u2026 {text[-half:].lstrip()}"


def _wrapped(text: str, columns: float) -> str:
    """Lines of at most so many columns of a terminal."""
    lines = (textwrap.wrap(line, max(1, int(columns * len(line) / max(1, cell_width(line))))) for line in text.splitlines())
    return "\n".join("\n".join(line) for line in lines)
