"""What may come of a call, and which outcome is right for it.

- right: it works, and what it gives is the right value, held against one that was had in another way.
- clear error: a `GradELLMError` (or what the attack names instead: a `TypeError` for a missing argument, an `OSError` for a
  file, what `model.generate` itself raises) whose message names what is wrong.
- silent: it gave something though it should have refused, or gave a wrong value.
- unclear: any other exception; a message that names nothing; a refusal of what should work; no end within half a minute.
"""

import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import FrameType
from typing import Any

from gradellm_hf import GradELLMError

_SECONDS = 30


class Outcome(Enum):
    RIGHT = "right"
    CLEAR = "clear error"
    SILENT = "silent"
    UNCLEAR = "unclear"


Verdict = tuple[Outcome, str]
#: From what a call returned, and what it raised or None, to what came of it.
Judge = Callable[[Any, BaseException | None], Verdict]


@dataclass(frozen=True)
class Attack:
    """A call, and who judges what comes of it.

    Attributes:
        surface: What is attacked.
        name: With what.
    """

    surface: str
    name: str
    call: Callable[[], Any]
    judge: Judge


class TooSlow(BaseException):
    """Not an Exception, so that nothing on the way takes it for one of a prompt or a method."""


def judged(attack: Attack) -> Verdict:
    """Makes the call and judges it."""
    previous = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(_SECONDS)
    result, error = None, None
    try:
        result = attack.call()
    except (Exception, SystemExit, TooSlow) as raised:
        error = raised
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    try:
        return attack.judge(result, error)
    except Exception as raised:  # a result that cannot even be looked at
        return Outcome.SILENT, f"returned what cannot be read: {_described(raised)}"


def refused(*words: str, types: tuple[type[BaseException], ...] = (GradELLMError,)) -> Judge:
    """Right is an error of one of these types whose message has one of these words."""

    def judge(result: Any, error: BaseException | None) -> Verdict:
        if error is None:
            return Outcome.SILENT, f"returned {_short(result)}"
        return _named(error, words, types)

    return judge


def missing(argument: str) -> Judge:
    """Right is Python's own error for an argument that is missing, or that no one knows."""
    return refused(argument, types=(TypeError,))


def works(check: Callable[[Any], Any] | None = None) -> Judge:
    """Right is a result that passes a check."""

    def judge(result: Any, error: BaseException | None) -> Verdict:
        if error is not None:
            return Outcome.UNCLEAR, f"should work: {_described(error)}"
        if check is not None and not check(result):
            return Outcome.SILENT, f"wrong: {_short(result)}"
        return Outcome.RIGHT, ""

    return judge


def works_or(check: Callable[[Any], Any], *words: str) -> Judge:
    """Right is either a result that passes a check, or an error that has one of these words."""

    def judge(result: Any, error: BaseException | None) -> Verdict:
        return works(check)(result, None) if error is None else _named(error, words, (GradELLMError,))

    return judge


def as_in(reference: Callable[[], Any], *words: str) -> Judge:
    """Right is the error that another function raises for the same arguments, or one of ours that names one of these."""

    def judge(result: Any, error: BaseException | None) -> Verdict:
        if error is None:
            return Outcome.SILENT, f"returned {_short(result)}"
        if isinstance(error, GradELLMError):
            return _named(error, words, (GradELLMError,))
        try:
            reference()
        except Exception as expected:
            if (type(expected), str(expected)) == (type(error), str(error)):
                return Outcome.CLEAR, ""
        return Outcome.UNCLEAR, _described(error)

    return judge


def _named(error: BaseException, words: tuple[str, ...], types: tuple[type[BaseException], ...]) -> Verdict:
    if not isinstance(error, types):
        return Outcome.UNCLEAR, _described(error)
    if not any(word.lower() in str(error).lower() for word in words):
        return Outcome.UNCLEAR, f"names none of {words}: {_described(error)}"
    return Outcome.CLEAR, ""


def _described(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {_short(str(error) or 'no message')}{where}"


def _short(value: Any) -> str:
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"no end within {_SECONDS} s")
