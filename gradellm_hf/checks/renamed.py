"""Arguments that have another name now: the old one works for one release, with a warning."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..errors import InvalidInputError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def renamed(**new_names: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A decorator, `@renamed(old="new")`, with which a function also takes keywords by their old names.

    An old name gives a FutureWarning that names the new one. Both together raise InvalidInputError.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for old, new in new_names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise InvalidInputError(f"`{old}` is the old name of `{new}`; give `{new}` alone.")
                warn_of_old_name(old, new, stacklevel=3)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def warn_of_old_name(old: str, new: str, stacklevel: int) -> None:
    """Gives the FutureWarning of an argument that was given by its old name; `stacklevel` as for `warnings.warn`."""
    warnings.warn(
        f"`{old}` is called `{new}` now; the next release no longer knows the old name.", FutureWarning, stacklevel + 1
    )
