"""An explanation as a picture: generated units down, the text before them across."""

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks.arguments import string, whole_number
from ..checks.files import write_atomically
from ..checks.optional import needed_for
from ..errors import InvalidInputError
from ..text.readable import Readable, earlier_positions
from .terminal import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Chosen by hand, by looking at figures.
_LARGEST = 16.0  # inches, in width and in height: 2400 pixels at 150 dpi
_LABEL_ROOM = 0.17  # inches per tick label: its 7 points are 0.1 inch
_LONGEST_LABEL = 18  # characters
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
    include_special: bool = False,
    title: str | None = None,
    cmap: str | None = None,
    dpi: int = 150,
) -> "Figure":
    """A heatmap, one row per generated unit and one column per source. Each row is relative to its own highest score.

    The figure grows with the text, up to 16 inches. If there is no room for every label, evenly spaced ones are written. It
    does not use `pyplot`: nothing is left open, and no backend is chosen.

    Args:
        explanation: What to show.
        path: The file to write; the suffix says the format (`.png`, `.svg`, `.pdf`, ...).
        include_special: Whether special tokens get rows and columns.
        title: Of the figure.
        cmap: matplotlib's name of a colour map. By default one hue, or two if there are negative scores.
        dpi: Resolution of pixel formats.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidInputError: There is nothing to show, `dpi` is no number of at least 1, the title is no text, or there is no such
            format.

    Examples:
        >>> plot_heatmap(explanation, "answer.png", title="Where is Rome?")
        <Figure size ...>
    """
    dpi = whole_number("dpi", dpi, 1)
    string("title", title, none="no title")
    with needed_for("Plots need", "matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.font_manager import get_font_names

    border, length = explanation.prompt_length, len(explanation.tokens)
    shown = [i for i in range(length) if include_special or not explanation.special[i]]
    rows, columns = [i for i in shown if i >= border], [i for i in shown if i < length - 1]
    if not rows or not columns:
        raise InvalidInputError(
            f"Nothing to plot: {len(rows)} generated units and {len(columns)} before them are shown. Explain generated text, "
            "or plot special tokens too with `include_special=True`."
        )
    # Scores from a unit itself, and from special tokens that are left out, are not shown and do not count in the scale.
    scores = explanation.attributions.masked_fill(~earlier_positions(border, length - border, length), 0)
    scores = scores[[i - border for i in rows]][:, columns]
    highest = scores.abs().amax(1, keepdim=True)
    scores = scores / highest.masked_fill(highest == 0, 1)
    signed = bool((scores < 0).any())

    names = [None] * length if explanation.unit_names is None else explanation.unit_names
    texts = [name or token for name, token in zip(names, explanation.tokens)]
    installed = set(get_font_names())
    fonts = [font for font in _FONTS if font in installed]
    width = min(_LARGEST, max(5.0, 2.2 + _LABEL_ROOM * len(columns)))
    height = min(_LARGEST, max(2.4, 1.6 + _LABEL_ROOM * len(rows)))
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(
        scores.numpy(),
        aspect="auto",
        interpolation="nearest",
        vmin=-1 if signed else 0,
        vmax=1,
        cmap=("PuOr" if signed else "Blues") if cmap is None else cmap,
    )
    for axis, units, room in ((axes.xaxis, columns, width - 2.2), (axes.yaxis, rows, height - 1.6)):
        every = -(-len(units) // max(1, round(room / _LABEL_ROOM)))
        axis.set_ticks(range(0, len(units), every), [_label(texts[i]) for i in units[::every]], fontsize=7, family=fonts)
    axes.tick_params(axis="x", rotation=90, length=2)
    axes.tick_params(axis="y", length=2)
    axes.set_ylabel(f"generated {explanation.level}", fontsize=8)
    axes.set_xlabel(f"source {explanation.level}", fontsize=8)
    prompt_columns = sum(i < border for i in columns)
    if 0 < prompt_columns < len(columns):
        axes.axvline(prompt_columns - 0.5, color="0.35", linewidth=0.8, linestyle=":")
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.01, shrink=min(1.0, 2.4 / height), aspect=15)
    bar.set_label("relative to the row's highest", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if title:
        axes.set_title(title, loc="left", fontsize=10, parse_math=False)
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


def _label(token: str) -> str:
    text = visible(token)
    text = text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "\u2026"
    return text.replace("$", r"\$")
