"""Pictures of explanations: a web page, and lines for a terminal."""

from .html import heatmap_page
from .terminal import strongest_tokens

__all__ = ["heatmap_page", "strongest_tokens"]
