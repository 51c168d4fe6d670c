"""The command line: one file per command, with `add_arguments(parser)` and `run(options) -> exit code`. May import everything.

Modules import what needs torch inside of their functions, so that `gradellm --help` and wrong options answer at once.
"""

from .command_line import main

__all__ = ["main"]
