"""A picture with the heatmap of an answer over it."""

import os
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checks.arguments import string, whole_number
from ..checks.optional import needed_for
from ..errors import InvalidInputError
from .plot import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST = 6.0  # inches
_STRONGEST = 0.7  # how much of the picture the colour of the largest score covers


def plot_picture(
    heatmap: Tensor,
    picture: Any = None,
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    cmap: str | None = None,
    dpi: int = 150,
) -> "Figure":
    """A picture in grey, and over it the heatmap: the colour and its strength are a pixel's score, relative to the largest.

    It does not use `pyplot`: nothing is left open, and no backend is chosen.

    Args:
        heatmap: `[H, W]`, as `Explanation.image_heatmap` returns it.
        picture: A PIL image of that size. None: the heatmap alone.
        path: The file to write; the suffix says the format (`.png`, `.svg`, `.pdf`, ...).
        title: Of the figure.
        cmap: matplotlib's name of a colour map. By default one from yellow to red, or two hues if there are negative scores.
        dpi: Resolution of pixel formats.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidInputError: The sizes differ, `dpi` is no number of at least 1, the title is no text, or there is no such format.

    Examples:
        >>> import torch
        >>> from gradellm_hf.visualization import plot_picture
        >>> plot_picture(torch.rand(48, 64), path="seen.png", title="What colour is the square?")
        <Figure size ...>
    """
    dpi = whole_number("dpi", dpi, 1)
    string("title", title, none="no title")
    height, width = heatmap.shape
    if picture is not None and (picture.height, picture.width) != (height, width):
        raise InvalidInputError(
            f"The picture has {picture.height} x {picture.width} pixels and the heatmap {height} x {width}. Give the picture "
            "as the prompt had it."
        )
    with needed_for("Plots need", "matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    highest = heatmap.abs().max().item() or 1.0
    signed = bool((heatmap < 0).any())
    scale = _LONGEST / max(height, width)
    figure = Figure(figsize=(max(2.0, width * scale) + 1.2, max(1.5, height * scale) + 0.5), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    extent = (0, width, height, 0)
    if picture is not None:
        axes.imshow(picture.convert("L"), cmap="gray", vmin=-64, vmax=255, extent=extent)
    strength = _STRONGEST * heatmap.abs() / highest
    drawn = axes.imshow(
        heatmap.numpy() / highest,
        alpha=None if picture is None else strength.numpy(),
        vmin=-1 if signed else 0,
        vmax=1,
        cmap=("PuOr" if signed else "YlOrRd") if cmap is None else cmap,
        interpolation="nearest",
        extent=extent,
    )
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=10, parse_math=False)
    bar: Any = figure.colorbar(drawn, ax=axes, pad=0.02, shrink=0.7, aspect=18)
    bar.solids.set_alpha(1)
    bar.ax.set_title("of the\nlargest", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    if path is not None:
        write_figure(figure, path)
    return figure
