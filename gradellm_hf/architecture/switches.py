"""Contexts that change what several threads share. The first thread to enter changes it, the last to leave changes it back."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Value = TypeVar("Value")
P = ParamSpec("P")

#: The open contexts, by function and identity of its arguments: how many are in it, the context manager, what it returned.
_open: dict[tuple[Any, ...], tuple[int, AbstractContextManager[Any], Any]] = {}
_lock = threading.RLock()


def shared(context: Callable[P, AbstractContextManager[Value]]) -> Callable[P, AbstractContextManager[Value]]:
    """A decorator of context managers: all who enter it with the same objects, at the same time, share one context.

    Uses may be nested and in several threads, and may end in any order. A thread that comes while another one enters waits
    until the change is made.
    """

    @contextmanager
    @wraps(context)
    def entered(*args: P.args, **kwargs: P.kwargs) -> Iterator[Value]:
        key = (context, *map(id, args), *((name, id(value)) for name, value in sorted(kwargs.items())))
        with _lock:
            if key in _open:
                users, opened, value = _open[key]
            else:
                users, opened = 0, context(*args, **kwargs)
                value = opened.__enter__()
            _open[key] = users + 1, opened, value
        try:
            yield value
        finally:
            with _lock:
                users, opened, _ = _open.pop(key)
                if users > 1:
                    _open[key] = users - 1, opened, value
                else:
                    opened.__exit__(None, None, None)

    return entered
