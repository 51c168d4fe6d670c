"""A function that gives one item after the other, turned into an iterator that has it wait for each to be asked for."""

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch


class _Closed(BaseException):
    """Raised in the producing thread when nobody waits for its items any more."""


def pulled(produce: Callable[[Callable[[Any], None]], None]) -> Iterator[Any]:
    """What `produce` gives to its argument, one item at a time.

    `produce` runs in a thread of its own, which waits until the next item is asked for. Its errors are raised here.
    The thread has the caller's context variables, and its current device and stream.
    """
    items: queue.SimpleQueue[tuple[Any, bool]] = queue.SimpleQueue()  # an item or, at the end, the error or None
    turns = threading.Semaphore(0)
    closed = threading.Event()
    stream = torch.accelerator.current_stream() if torch.cuda.is_available() else None

    def give(item: Any) -> None:
        items.put((item, False))
        turns.acquire()
        if closed.is_set():
            raise _Closed

    def work() -> None:
        error: BaseException | None = None
        try:
            if stream is not None:
                torch.accelerator.set_stream(stream)  # and its device
            produce(give)
        except _Closed:
            pass
        except BaseException as raised:
            error = raised
        items.put((error, True))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="explain_stream", daemon=True)
    thread.start()
    try:
        while True:
            item, last = items.get()
            if last:
                if item is not None:
                    raise item
                return
            yield item
            turns.release()
    finally:
        closed.set()
        turns.release()
        thread.join()
