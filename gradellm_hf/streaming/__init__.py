"""Explains while `generate` goes on writing: `explain_stream`, token by token or in blocks of tokens.

May import `engines`, `sequences`, `architecture`, `checks`, `configuration` and `errors` only.
"""

from .step import ExplainedStep
from .stream import explain_stream

__all__ = ["ExplainedStep", "explain_stream"]
