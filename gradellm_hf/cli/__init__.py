"""The command line: one file per command, with `add_arguments(parser)` and `run(options) -> exit code`.

May import everything below it. What needs torch is imported inside of functions, so that `gradellm --help` and wrong options
answer at once.
"""

from .command_line import main

__all__ = ["main"]
