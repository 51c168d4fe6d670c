"""What an argument must be: numbers, choices and masks, read the same way by every function."""

import math
import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInputError
from .schema import short


def is_index(value: Any) -> bool:
    """Whether it is an integer, Python's or NumPy's, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_list(value: Any) -> bool:
    """Whether it is a sequence of values: neither text nor bytes."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def whole_number(name: str, value: Any, low: int | None = None, high: int | None = None, *, none: str = "") -> int:
    """The number as an `int`.

    Args:
        low, high: The least and the largest number that it may be.
        none: What None means, if the caller takes None; for the error.

    Raises:
        InvalidInputError: It is no integer (a bool is none, nor is 2.0), or out of range.
    """
    if is_index(value) and (low is None or value >= low) and (high is None or value <= high):
        return operator.index(value)
    limits = ""
    if low is not None:
        limits = f" of at least {low}" if high is None else f" from {low} to {high}"
    otherwise = f"None ({none}) or " if none else ""
    raise InvalidInputError(f"`{name}` must be {otherwise}an int{limits}, got {value!r}.")


def real_number(name: str, value: Any, expected: str, low: float, high: float = math.inf, *, open_ends: bool = False) -> float:
    """The number as a `float`.

    Args:
        expected: What it must be, for the error.
        low, high: The least and the largest number that it may be.
        open_ends: Whether it must lie between these, and be neither.

    Raises:
        InvalidInputError: It is no finite number (a bool is none), or out of range.
    """
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
        if low < number < high or (not open_ends and number in (low, high)):
            return number
    raise InvalidInputError(f"`{name}` must be {expected}, got {value!r}.")


def shares(name: str, values: Any) -> tuple[float, ...]:
    """Shares between 0 and 1 as `float`s; raises InvalidInputError unless they are, and there is at least one."""
    values = values.tolist() if hasattr(values, "tolist") else values  # of NumPy, of torch
    if not is_list(values) or not len(values):
        raise InvalidInputError(f"`{name}` must be shares between 0 and 1, at least one, got {values!r}.")
    return tuple(real_number(name, value, "shares between 0 and 1", 0, 1) for value in values)


def true_or_false(name: str, value: Any) -> bool:
    """Raises InvalidInputError unless it is a bool."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"`{name}` must be True or False, got {value!r}.")
    return value


def choice(name: str, value: Any, choices: Sequence[str], alternative: str | None = None) -> Any:
    """Raises InvalidInputError unless it is one of these words."""
    if not isinstance(value, str) or value not in choices:
        expected = " or ".join([*map(repr, choices), *([alternative] if alternative else [])])
        raise InvalidInputError(f"`{name}` must be {expected}, got {value!r}.")
    return value


def string(name: str, value: Any, *, none: str = "") -> Any:
    """Raises InvalidInputError unless it is a text; or None, if `none` says what None means."""
    if not isinstance(value, str) and not (none and value is None):
        otherwise = f"None ({none}) or " if none else ""
        raise InvalidInputError(f"`{name}` must be {otherwise}a text (str), got {value!r}.")
    return value


def one_each(name: str, value: Any, expected: int) -> list[str]:
    """A text for each of so many prompts, from a single one or a list; raises InvalidInputError if they are others."""
    texts = [value] if isinstance(value, str) else list(value) if is_list(value) else []
    if len(texts) != expected or not all(isinstance(text, str) and text for text in texts):
        raise InvalidInputError(f"`{name}` must be a non-empty text for each of the {expected} prompts, got {value!r}.")
    return texts


def numbers(name: str, value: Any, expected: str) -> Tensor:
    """Numbers in a tensor, an array or (nested) lists, as a tensor.

    Args:
        expected: What they must be, for the error.

    Raises:
        InvalidInputError: It is something else, ragged, or complex.
    """
    try:
        found = None if isinstance(value, str | bytes | bytearray | memoryview) else torch.as_tensor(value)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        found = None
    if found is None or found.is_complex():
        raise InvalidInputError(f"`{name}` must be {expected}; got {short(value)}.")
    return found


def tensor(name: str, value: Any) -> Tensor:
    """Raises InvalidInputError unless it is a tensor, which a list of numbers is not."""
    if not isinstance(value, Tensor):
        raise InvalidInputError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}.")
    return value


def binary_mask(name: str, mask: Any, shape: torch.Size | None = None) -> Tensor:
    """A mask as bools. It may be of any type; 1 is True and 0 is False, and there is nothing else.

    Args:
        shape: What it is broadcast to.

    Raises:
        InvalidInputError: It is no tensor, holds another number, or NaN, or does not broadcast.
    """
    is_one = tensor(name, mask)
    if mask.dtype != torch.bool:
        is_one = mask == 1
        other = ~(is_one | (mask == 0))
        if bool(other.any()):
            raise InvalidInputError(f"`{name}` must hold nothing but 0 and 1 (False and True), got {mask[other][0].item()}.")
    if shape is None:
        return is_one
    try:
        return is_one.broadcast_to(shape)
    except RuntimeError as error:
        raise InvalidInputError(
            f"`{name}` must broadcast to the scores' shape {list(shape)}, got {list(mask.shape)}."
        ) from error


def checked_generator(generator: torch.Generator | None) -> torch.Generator:
    """The generator to draw from; raises InvalidInputError if it is not usable."""
    if generator is None:
        return torch.Generator().manual_seed(0)
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise InvalidInputError("`generator` must be a torch.Generator on the CPU, so that every device sees the same draws.")
    return generator
