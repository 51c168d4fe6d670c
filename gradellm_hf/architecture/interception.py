"""How a handler takes the place of a model's attention function, without touching the model's code."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .switches import shared

AttentionFunction = Callable[..., Any]  # (module, query, key, value, attention_mask, ...) -> (output, weights)

_handler: ContextVar[Callable[..., Any] | None] = ContextVar("gradellm_attention_handler", default=None)
_LOOK_UPS = ("get_interface", "__getitem__")
_inherited = object()


@contextmanager
def attention_handler(handler: Callable[..., Any]) -> Iterator[None]:
    """While open, attention calls of this thread go to `handler(model's own function, module, query, key, ...)`.

    A model looks up its attention function by name in an `AttentionInterface`: by `get_interface`, or by `[name]` if it was
    written for an earlier version of Transformers. These two look-ups are replaced. For others they still return the model's
    own function: for other threads, other contexts, and that function itself if it looks up another one. Masks, and all
    else that depends on the name of the implementation, stay what they are in a normal forward pass.
    """
    token = _handler.set(handler)
    try:
        with _installed():
            yield
    finally:
        _handler.reset(token)


@shared
@contextmanager
def _installed() -> Iterator[None]:
    """A context in which the look-ups of every AttentionInterface go through `_handled`."""
    from transformers.modeling_utils import AttentionInterface

    before = {name: vars(AttentionInterface).get(name, _inherited) for name in _LOOK_UPS}
    try:
        for name in _LOOK_UPS:
            setattr(AttentionInterface, name, _handled(getattr(AttentionInterface, name)))
        yield
    finally:
        for name, method in before.items():
            if method is not _inherited:
                setattr(AttentionInterface, name, method)
            elif name in vars(AttentionInterface):
                delattr(AttentionInterface, name)


class _Handled:
    """A model's own attention function, wrapped so that the handler is called with it."""

    def __init__(self, handler: Callable[..., Any], function: AttentionFunction):
        self._handler, self._function = handler, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler(self._own, *args, **kwargs)

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        token = _handler.set(None)
        try:
            return self._function(*args, **kwargs)
        finally:
            _handler.reset(token)


def _handled(look_up: Callable[..., AttentionFunction]) -> Callable[..., AttentionFunction]:
    @functools.wraps(look_up)
    def look_up_handled(*args: Any, **kwargs: Any) -> AttentionFunction:
        function = look_up(*args, **kwargs)  # `get_interface` looks up by `[name]`, which has been here already
        handler = _handler.get()
        if handler is None or isinstance(function, _Handled):
            return function
        return _Handled(handler, function)

    return look_up_handled
