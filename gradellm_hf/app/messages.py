"""Errors as messages to the user."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..engines.memory import is_out_of_memory
from ..errors import GradELLMError
from .needed import gr

_LOG = logging.getLogger(__name__)


def message_of(error: BaseException) -> str:
    """What to tell a user of an error."""
    if isinstance(error, GradELLMError):
        return str(error)
    if is_out_of_memory(error):
        return "There is not enough memory. Try a shorter answer, fewer documents or fewer layers."
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


@contextmanager
def as_messages() -> Iterator[None]:
    """A context whose errors are shown to the user. Those that nobody expected are logged, too."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, GradELLMError):
            _LOG.exception("An event of the app failed")
        raise gr.Error(message_of(error), print_exception=False) from error
