"""Contexts that change what several threads share: changed by the first who enters, changed back by the last who leaves."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, TypeVar, TypeVarTuple

Value = TypeVar("Value")
Args = TypeVarTuple("Args")

#: By context and identity of what it is a context of: how many are in it, the open context, and what it gave.
_open: dict[tuple[Any, ...], tuple[int, AbstractContextManager[Any], Any]] = {}
_lock = threading.RLock()


def shared(context: Callable[[*Args], AbstractContextManager[Value]]) -> Callable[[*Args], AbstractContextManager[Value]]:
    """A decorator of context managers: all who are in it with the same objects at a time are in one context.

    They may be nested, in several threads, and leave in another order than they came. Who comes while another one enters
    waits until the change is made.
    """

    @contextmanager
    @wraps(context)
    def entered(*args: *Args) -> Iterator[Value]:
        key = (context, *map(id, args))
        with _lock:
            if key in _open:
                users, opened, value = _open[key]
            else:
                users, opened = 0, context(*args)
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
