"""Module hooks that see only calls of the thread that made them: other threads may use the model meanwhile."""

import functools
import threading
from collections.abc import Callable
from typing import Any


def thread_hook(hook: Callable) -> Callable:
    """`hook`, for the current thread only."""
    thread = threading.get_ident()

    @functools.wraps(hook)
    def guarded(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == thread else None

    guarded.is_thread_hook = True  # type: ignore[attr-defined]
    return guarded


def is_thread_hook(hook: Any) -> bool:
    """Whether a hook was made by `thread_hook` for an explanation, and is not the user's."""
    return getattr(hook, "is_thread_hook", False)
