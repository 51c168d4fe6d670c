"""Work that is done beside other work: in another thread, one piece after the other."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_WAITING = 64  # chosen by hand: pieces that may wait; what they hold stays in memory


class Beside:
    """A context whose work is done when it ends. Errors of the work are raised where the next piece comes, or at the end.

    Work that has been handed over is done also if the context ends with an error.
    """

    def __enter__(self) -> "Beside":
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._waiting: deque[Future[Any]] = deque()
        return self

    def do(self, work: Callable[..., object], *arguments: Any) -> None:
        """Hands a piece of work over. It waits if too much is waiting.

        Raises:
            Exception: What an earlier piece raised; those after it were done all the same.
        """
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= _WAITING):
            self._waiting.popleft().result()
        self._waiting.append(self._executor.submit(work, *arguments))

    def __exit__(self, kind: object, *_: object) -> None:
        self._executor.shutdown()
        if kind is None:
            for piece in self._waiting:
                piece.result()
