"""Pictures of explanations: a web page, a figure, a table, and lines for a terminal.

May import `text`, `checks` and `errors` only: explanations are known by what `text.readable` says of them.
"""

from .html import report, report_data, report_script, snippet
from .plot import plot_heatmap
from .plot_picture import plot_picture
from .terminal import render

__all__ = ["plot_heatmap", "plot_picture", "render", "report", "report_data", "report_script", "snippet"]
