"""Pictures of explanations: a web page, a figure, and lines for a terminal."""

from .html import report, snippet
from .plot import plot_heatmap
from .terminal import render

__all__ = ["plot_heatmap", "render", "report", "snippet"]
