"""Checks of what a file holds: types are the schemas of JSON values, letters those of the shapes of tensors."""

import contextlib
import dataclasses
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union

import torch
from torch import Tensor

from ..errors import InvalidInputError

Natural = Annotated[int, range(2**63)]
TokenId = Annotated[int, range(2**31)]
_NAMES = {bool: "true or false", int: "an int", float: "a finite number", str: "a text"}
_LONGEST = 60  # characters of a value in a message


def parse_json(text: str | bytes, name: str) -> Any:
    """The value of a JSON text. Whatever is wrong with it, the error is an InvalidInputError.

    Raises:
        InvalidInputError: It is not JSON (or no text at all), or nested too deeply.
    """
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{name} is not JSON: {error}") from error


def check(value: Any, kind: Any, name: str) -> None:
    """Checks a value that came from JSON.

    Args:
        value: The value.
        kind: A type: None, `bool`, `int`, `float` (finite), `str`, `Any`, `list[...]`, `tuple[..., ...]`, `dict[str, ...]`,
            `Literal`, a union, `Annotated[int, range(...)]`, a `TypedDict`, a dataclass (given as a dict of some of its
            fields), or any other class. Keys that a `TypedDict` or dataclass does not have are ignored: a later version may
            write them.
        name: What it is called in messages.

    Raises:
        InvalidInputError: It is something else; the message says which part of it.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return
    if origin is Annotated:
        check(value, arguments[0], name)
        if value not in arguments[1]:
            raise InvalidInputError(f"{name} must be from {arguments[1][0]} to {arguments[1][-1]}, got {short(value)}.")
    elif origin in (Union, types.UnionType):
        _check_union(value, arguments, name)
    elif origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise InvalidInputError(f"{name} must be one of {list(arguments)}, got {short(value)}.")
    elif origin is tuple and arguments[-1] is not Ellipsis:
        _expect(isinstance(value, list | tuple) and len(value) == len(arguments), f"a list of {len(arguments)}", value, name)
        for position, (item, its_kind) in enumerate(zip(value, arguments)):
            check(item, its_kind, f"{name}[{position}]")
    elif origin in (list, tuple):
        _expect(isinstance(value, list | tuple), "a list", value, name)
        for position, item in enumerate(() if _all_plain(value, arguments[0]) else value):
            check(item, arguments[0], f"{name}[{position}]")
    elif origin is dict:
        _expect(isinstance(value, dict), "an object", value, name)
        for key, item in value.items():
            check(item, arguments[1], f"{name}[{short(key)}]")
    elif typing.is_typeddict(kind) or (dataclasses.is_dataclass(kind) and isinstance(value, dict)):
        _expect(isinstance(value, dict), "an object", value, name)
        hints = field_types(kind)
        for key in sorted(getattr(kind, "__required_keys__", ()) - value.keys()):
            raise InvalidInputError(f"{name} has no {key!r}.")
        for key in hints.keys() & value.keys():
            check(value[key], hints[key], f"{name}[{key!r}]")
    elif kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _expect(number and abs(value) <= sys.float_info.max, _NAMES[float], value, name)
    else:
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        _expect(fits, _NAMES.get(kind, f"a {kind.__name__}"), value, name)


def known_fields(values: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The values that a `TypedDict` or dataclass has a name for; the others are of a later version."""
    return {name: values[name] for name in field_types(kind) if name in values}


class TensorKind(NamedTuple):
    """What a tensor must be.

    Attributes:
        shape: One letter per dimension. A letter stands for the same number everywhere in a file.
        dtypes: One of these.
        values: The lowest and the highest value that it may hold; all must be finite.
        optional: Whether it may be missing.
    """

    shape: str
    dtypes: tuple[torch.dtype, ...]
    values: tuple[float, float] = (-math.inf, math.inf)
    optional: bool = False


def check_tensors(
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, TensorKind],
    sizes: Mapping[str, int],
    sources: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Checks tensors that came from a file.

    Args:
        sizes: The numbers of some letters, if known.
        sources: What these numbers come from, for messages.

    Raises:
        InvalidInputError: One is missing, of another dtype, of a shape that does not fit, or holds a value that cannot be.
    """
    found = dict(sizes)
    for name, kind in kinds.items():
        if name not in tensors:
            if kind.optional:
                continue
            raise InvalidInputError(f"the tensor `{name}` is missing.")
        x = tensors[name]
        if x.dtype not in kind.dtypes:
            raise InvalidInputError(f"`{name}` must be {' or '.join(map(str, kind.dtypes))}, got {x.dtype}.")
        expected = [found.get(letter, -1) for letter in kind.shape]
        fits = len(x.shape) == len(kind.shape) and all(n in (-1, size) for n, size in zip(expected, x.shape))
        if not fits:
            wanted = ", ".join(letter if n < 0 else str(n) for letter, n in zip(kind.shape, expected))
            letters = ", ".join(kind.shape)
            said = "".join(f", {letter} as {sources[letter]} says" for letter in kind.shape if letter in sources)
            raise InvalidInputError(f"`{name}` must have shape [{wanted}], which is [{letters}]{said}; got {list(x.shape)}.")
        found |= zip(kind.shape, x.shape)
        _check_values(x, name, *kind.values)


def _check_values(x: Tensor, name: str, lowest: float, highest: float) -> None:
    if x.dtype == torch.bool:
        x, lowest, highest = x.view(torch.uint8), 0, 1
    if not x.numel():
        return
    if x.is_floating_point() and not x.isfinite().all():
        raise InvalidInputError(f"`{name}` holds values that are not finite.")
    low, high = (extreme.item() for extreme in x.aminmax())
    if low < lowest or high > highest:
        raise InvalidInputError(f"`{name}` must hold values from {lowest} to {highest}, got {low} to {high}.")


def _all_plain(values: list[Any] | tuple[Any, ...], kind: Any) -> bool:
    """Whether all values are of such a type: a quick check of long lists of texts and numbers. False if it cannot tell."""
    plain, *bounds = typing.get_args(kind) if typing.get_origin(kind) is Annotated else (kind,)
    if plain not in (str, int, bool) or set(map(type, values)) - {plain}:
        return False
    return not (bounds and values) or (min(values) in bounds[0] and max(values) in bounds[0])


def _check_union(value: Any, kinds: tuple[Any, ...], name: str) -> None:
    """Checks against each type of a union. If the value fits none, the error is that of the last one."""
    *others, last = (kind for kind in kinds if kind is not type(None))
    if value is None and type(None) in kinds:
        return
    for kind in others:
        with contextlib.suppress(InvalidInputError):
            check(value, kind, name)
            return
    check(value, last, name)


def _expect(fits: bool, expected: str, value: Any, name: str) -> None:
    if not fits:
        raise InvalidInputError(f"{name} must be {expected}, got {short(value)}.")


def short(value: Any) -> str:
    """How a value is shown in a message."""
    if isinstance(value, list | dict) and len(value) > 3:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply; an int of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


@functools.cache
def field_types(kind: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass or `TypedDict`."""
    return typing.get_type_hints(kind, include_extras=True)
