"""Checks that are made before a model is loaded: of numbers, of prompts, and of the files and folders that will be written."""

import argparse
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checks.optional import needed_for
from ..errors import InvalidInputError
from ..text.token_text import is_unicode


def wrong(message: str) -> argparse.ArgumentError:
    """The error of options that do not go together."""
    return argparse.ArgumentError(None, message)


def read_json(name: str, path: Path, kind: type) -> Any:
    """The JSON value in a file that an option names.

    Args:
        kind: What it must be: `list` or `dict`.

    Raises:
        argparse.ArgumentError: The file cannot be read, or holds something else.
    """
    expected = "list" if kind is list else "object"
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(f"{name} {path}: no JSON {expected} can be read: {error}") from error
    if not isinstance(value, kind) or not value:
        raise wrong(f"{name} {path}: a JSON {expected} with something in it is expected")
    return value


def at_least(smallest: int) -> Callable[[str], int]:
    """For `type=` of an option: an int of at least so much."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {smallest}")
        return value

    return number


def between(low: float, high: float = math.inf, *, inclusive: bool = False) -> Callable[[str], float]:
    """For `type=` of an option: a finite number above `low` and below `high`; `inclusive` allows both."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not (low <= value <= high if inclusive else low < value < high):
            limits = f"from {low} to {high}" if inclusive else f"above {low} and below {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {limits}")
        return value

    return number


def seed(text: str) -> int:
    """For `type=` of an option: what every library takes as a seed of random numbers."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 2^32 - 1")
    return value


def steps(text: str) -> slice | list[int]:
    """For `type=` of an option: a slice or indices, as Python counts."""
    try:
        if ":" not in text:
            return [int(part) for part in text.split(",")]
        found = slice(*(int(part) if part else None for part in text.split(":")))
        range(0)[found]
        return found
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no slice (100: or 0:10 or ::2) and no indices with commas") from None


def keep(text: str) -> Any:
    """For `type=` of an option: how many scores are kept."""
    if text == "top":
        return text
    try:
        return at_least(1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither top nor a number of at least 1") from None


def check_files(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Raises InvalidInputError if a file could not be written, or writing it would destroy another file of the call.

    Args:
        outputs, inputs: Files by the options that name them.
    """
    names: dict[Any, str] = {}
    for option, path in inputs.items():
        if path is not None:
            names |= dict.fromkeys(_identities(path), option)
    for option, path in outputs.items():
        if path is None:
            continue
        _check_file(option, path)
        for identity in _identities(path):
            if identity in names:
                raise InvalidInputError(f"{names[identity]} and {option} are the same file, {str(path)!r}. Name another one.")
        names |= dict.fromkeys(_identities(path), option)


def check_folder(option: str, folder: Path) -> None:
    """Raises InvalidInputError if a folder is missing and cannot be made, or cannot be written to."""
    there = Path(os.path.realpath(folder))
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise InvalidInputError(f"{option} {str(folder)!r}: {str(there)!r} is not a folder. Name another one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidInputError(f"{option} {str(folder)!r}: there is no permission to write to {str(there)!r}.")


def check_picture(option: str, path: Path | None) -> None:
    """Raises an error if matplotlib is missing, or cannot draw the kind of picture that the name of the file asks for."""
    if path is None:
        return
    check_matplotlib(f"{option} needs")
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix.lower().removeprefix(".") not in (known := FigureCanvasBase.get_supported_filetypes()):
        raise InvalidInputError(
            f"{option} {str(path)!r}: the end of the name says what kind of picture it is, and must be one of "
            f"{', '.join(f'.{kind}' for kind in sorted(known))}."
        )


def check_matplotlib(who_needs: str) -> None:
    """Raises MissingDependencyError if matplotlib is not installed."""
    with needed_for(who_needs, "matplotlib"):
        import matplotlib.figure  # noqa: F401


def check_prompts(source: str, column: str | None) -> None:
    """Raises as `PromptReader` does, and InvalidInputError if not a single record holds a prompt."""
    from ..jobs.prompts import PromptReader

    reader = PromptReader(source, column)
    first_error: InvalidInputError | None = None
    for index in range(len(reader)):
        try:
            if reader[index].content:
                return
        except InvalidInputError as error:
            first_error = first_error or error
    raise first_error or InvalidInputError(f"All prompts of {source!r} are empty.")


def check_text(option: str, text: str) -> str:
    """The text. Raises InvalidInputError if it is empty, or was read from bytes that are no text."""
    if not text:
        raise InvalidInputError(f"{option} is empty. Give at least one character.")
    if not is_unicode(text):
        raise InvalidInputError(f"{option} holds bytes that are no text in the encoding of this system. Write it as UTF-8.")
    return text


def _check_file(option: str, path: Path) -> None:
    target = Path(os.path.realpath(path))  # of a link, what it leads to
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        mode = None
    except NotADirectoryError:
        raise InvalidInputError(f"{option} {str(path)!r}: {str(target.parent)!r} is not a folder.") from None
    if mode is not None and stat.S_ISDIR(mode):
        raise InvalidInputError(f"{option} {str(path)!r} is a folder. Name a file in it.")
    if mode is not None and not stat.S_ISREG(mode):
        raise InvalidInputError(f"{option} {str(path)!r} is no ordinary file, and would be lost. Name another one.")
    if not target.parent.is_dir():
        raise InvalidInputError(f"{option} {str(path)!r}: there is no folder {str(target.parent)!r}. Make it first.")
    if not os.access(target.parent, os.W_OK | os.X_OK) or (mode is not None and not os.access(target, os.W_OK)):
        raise InvalidInputError(f"{option} {str(path)!r}: there is no permission to write it.")


def _identities(path: Path) -> list[Any]:
    """What all names of one file have in common: the path that they lead to and, if the file is there, its number."""
    identities: list[Any] = [os.path.realpath(path)]
    try:
        found = path.stat()
        identities.append((found.st_dev, found.st_ino))
    except OSError:
        pass
    return identities
