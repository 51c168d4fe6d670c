"""The command line: `gradellm COMMAND ...`, or `python -m gradellm_hf COMMAND ...`.

Results go to standard output, progress and messages to standard error. Exit codes: 0 all is well; 1 a part failed (a prompt of
a job, a file that could not be written, engines that differ); 2 an error; 130 interrupted; 141 the reader of the output has
stopped reading.
"""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from .renamed import with_new_names

# The module of a command has the same name. It has `add_arguments(parser)` and `run(options) -> exit code`. It may have
# `RENAMED`: the new names of its options by the old ones. Only the module of the given command is imported.
COMMANDS = {
    "explain": "explain what a model writes, or why it would write a given text",
    "show": "show an explanation that was saved, or write it as a page or a picture",
    "dataset": "explain the answers to many prompts, in a job that can be stopped and resumed",
    "evaluate": "measure how faithful explanations are, method by method",
    "calibrate": "learn how much each attention head of a model counts, once per model",
    "verify": "check that explanations are exact for a model",
    "app": "chat with a model in the browser, and see what its answers rest on",
    "demo": "ask a small real model a question and explain its answer",
}
_JOBS = ("dataset", "evaluate")  # the same command, given again, continues these
_EXAMPLES = """
examples:
  gradellm explain HuggingFaceTB/SmolLM2-135M-Instruct --chat --prompt "Name a colour." --html colour.html
  gradellm explain ./my-model --prompt "The capital of Italy is" --target " Rome" --json
  gradellm show explanation.safetensors --top 3
  gradellm verify ./my-model

`gradellm COMMAND --help` describes a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. Bad usage and `--help` exit as argparse does."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    try:
        with _writable_output():
            return _run(arguments, command)
    except KeyboardInterrupt:
        _say("interrupted" + ("; the same command goes on from here" if command in _JOBS else ""))
        return 130
    except BrokenPipeError:  # as `head` leaves it
        _discard(sys.stderr)
        return 141
    except Exception as error:
        if "--debug" in arguments:
            raise
        _say(f"error: {_message(error)}")
        return 2


def _run(arguments: Sequence[str], chosen: str | None) -> int:
    parser = argparse.ArgumentParser(
        prog="gradellm",
        description="Grad-ELLM explanations of what decoder-only language models write.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    debug: dict[str, Any] = {"action": "store_true", "help": "show the traceback of an error"}
    parser.add_argument("--debug", **debug)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_argument("--debug", default=argparse.SUPPRESS, **debug)
        if name == chosen:
            implementation = importlib.import_module(f".{name}", __package__)
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run, parser=command)
            arguments = with_new_names(arguments, getattr(implementation, "RENAMED", {}))
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except argparse.ArgumentError as error:  # options that do not go together
        options.parser.error(str(error))
        raise  # not reached: argparse has left with exit code 2


@contextlib.contextmanager
def _writable_output() -> Iterator[None]:
    """A context in which standard output and error take any text. At its end, standard output is flushed.

    Text for a stream that the caller has closed is lost. A character that the encoding lacks becomes a question mark.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the end of the process
    output = sys.stdout
    errors = getattr(output, "errors", None)
    _set_errors(output, "replace")
    try:
        yield
    finally:
        try:
            output.flush()
        except OSError:  # nobody reads it, or the disk is full
            _discard(output)
            raise
        _set_errors(output, errors)


def _set_errors(stream: TextIO, errors: str | None) -> None:
    if hasattr(stream, "reconfigure") and errors is not None:
        stream.reconfigure(errors=errors)


def _discard(stream: TextIO) -> None:
    """Drops what a stream still holds: otherwise Python would try to write it once more when it ends, and complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(message: str) -> None:
    try:
        print(f"gradellm: {message}", file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _message(error: Exception) -> str:
    from ..engines.memory import is_out_of_memory
    from ..errors import GradELLMError

    if isinstance(error, GradELLMError | OSError | ImportError):
        return str(error)
    if is_out_of_memory(error):
        return (
            "There is not enough memory. Try --dtype bfloat16, --device-map auto, fewer --layers, a shorter prompt or a "
            "smaller --max-new-tokens."
        )
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]} (--debug shows where)"
