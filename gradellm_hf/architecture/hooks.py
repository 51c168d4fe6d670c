"""Module hooks that see only calls of the thread that made them: other threads may use the model meanwhile."""

import threading
from collections.abc import Callable
from typing import Any


class _ThreadHook:
    def __init__(self, hook: Callable[..., Any]):
        self._hook, self._thread = hook, threading.get_ident()

    def __call__(self, *args: Any) -> Any:
        return self._hook(*args) if threading.get_ident() == self._thread else None


def thread_hook(hook: Callable[..., Any]) -> Callable[..., Any]:
    """`hook`, for the current thread only."""
    return _ThreadHook(hook)


def is_thread_hook(hook: Any) -> bool:
    """Whether a hook was made by `thread_hook` for an explanation, and is not the user's."""
    return isinstance(hook, _ThreadHook)
