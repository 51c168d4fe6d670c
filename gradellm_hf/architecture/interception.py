"""How a handler takes the place of a model's attention function, without touching the model's code."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any

from torch import nn

from .compat import eager_namespaces, is_eager_function
from .switches import shared

AttentionFunction = Callable[..., Any]  # (module, query, key, value, attention_mask, ...) -> (output, weights)

_handler: ContextVar[Callable[..., Any] | None] = ContextVar("gradellm_attention_handler", default=None)
_LOOK_UPS = ("get_interface", "__getitem__")
_inherited = object()


@contextmanager
def attention_handler(model: nn.Module, handler: Callable[..., Any]) -> Iterator[None]:
    """While open, the model's attention calls in this thread go to `handler(its own function, module, query, key, ...)`.

    The seam is how a model looks up its attention function. Models of today ask an `AttentionInterface` by `get_interface`.
    Models that were written for earlier versions of Transformers ask it by `[name]`, or, if their attention is eager, take the
    function of that name in their own file. For others all three still give the model's own function: for other threads, other
    contexts, and that function itself if it looks up another one. Masks, and all else that depends on the name of the
    implementation, stay what they are in a normal forward pass.
    """
    token = _handler.set(handler)
    try:
        with ExitStack() as stack:
            stack.enter_context(_look_ups_handled())
            for namespace in eager_namespaces(model):
                stack.enter_context(_eager_handled(namespace))
            yield
    finally:
        _handler.reset(token)


@shared
@contextmanager
def _look_ups_handled() -> Iterator[None]:
    """A context in which the look-ups of every AttentionInterface go through `_in_this_context`."""
    from transformers.modeling_utils import AttentionInterface

    look_ups = [name for name in _LOOK_UPS if hasattr(AttentionInterface, name)]
    before = {name: vars(AttentionInterface).get(name, _inherited) for name in look_ups}
    try:
        for name in look_ups:
            own = getattr(AttentionInterface, name)
            setattr(AttentionInterface, name, _handled_look_up(own))
            _look_up_anew(own)
        yield
    finally:
        for name, method in before.items():
            handled = vars(AttentionInterface).get(name)
            if method is not _inherited:
                setattr(AttentionInterface, name, method)
            elif handled is not None:
                delattr(AttentionInterface, name)
            _look_up_anew(handled)


def _look_up_anew(method: Any) -> None:
    """Has every call of a method that is no longer that of its class look up which one is.

    In CPython 3.13 a line of code with `x[name]` goes on with the `__getitem__` that it has called before, once the class has
    changed a thousand times. For such a line, a function whose defaults have been set is another one.
    """
    if isinstance(method, FunctionType):
        method.__defaults__ = method.__defaults__


@shared
@contextmanager
def _eager_handled(namespace: dict[str, Any]) -> Iterator[None]:
    """A context in which the eager attention functions among the global names of a file go to the handler, if one is set."""
    before = {name: function for name, function in namespace.items() if is_eager_function(name)}
    try:
        namespace.update({name: _handled_call(function) for name, function in before.items()})
        yield
    finally:
        namespace.update(before)


class OwnAttention:
    """A model's own attention function, as the handler gets it: what it looks up itself does not come to the handler again.

    Attributes:
        function: That function.
    """

    def __init__(self, function: AttentionFunction):
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = _handler.set(None)
        try:
            return self.function(*args, **kwargs)
        finally:
            _handler.reset(token)


class _Handled:
    """A model's own attention function, wrapped so that the handler is called with it."""

    def __init__(self, handler: Callable[..., Any], function: AttentionFunction):
        self._handler, self._own = handler, OwnAttention(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler(self._own, *args, **kwargs)


def _in_this_context(function: AttentionFunction) -> AttentionFunction:
    """The handler, with the model's own function; if there is no handler, that function itself."""
    handler = _handler.get()
    if handler is None or isinstance(function, _Handled):  # `get_interface` looks up by `[name]`, which has been here already
        return function
    return _Handled(handler, function)


def _handled_look_up(look_up: Callable[..., AttentionFunction]) -> Callable[..., AttentionFunction]:
    @functools.wraps(look_up)
    def look_up_handled(*args: Any, **kwargs: Any) -> AttentionFunction:
        return _in_this_context(look_up(*args, **kwargs))

    return look_up_handled


def _handled_call(function: AttentionFunction) -> AttentionFunction:
    @functools.wraps(function)
    def call_handled(*args: Any, **kwargs: Any) -> Any:
        return _in_this_context(function)(*args, **kwargs)

    return call_handled
