"""The methods by name, and the form of their results."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks.arguments import string
from ..errors import InvalidInputError
from ..metrics.perturbation import PerturbedText
from ..text.readable import earlier_positions


class Method(Protocol):
    """A way to explain text that exists: heatmaps of every generated token."""

    def __call__(self, model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None, /) -> Tensor:
        """Explains.

        Args:
            model: A decoder-only Transformers model in evaluation mode.
            sequences: Token ids of prompts, padded on the left, and continuations, `[R, S]`.
            prompt_length: `P`.
            attention_mask: 0 for padding, `[R, P]` or `[R, S]`; in the continuation, 0 marks steps after a row's end.

        Returns:
            `[R, N, S]`, float32: the score of position `i` for generated token `n`; exactly 0 for `i >= P + n`, for padding,
            and for steps after a row's end.
        """
        ...


_methods: dict[str, Method] = {}


def register_method(name: str, method: Method) -> None:
    """Makes a method known by a name.

    Raises:
        InvalidInputError: The name is taken or no text, or the method cannot be called.
    """
    if not string("name", name):
        raise InvalidInputError("`name` is empty: give the method a name.")
    check_method("method", method)
    if name in _methods:
        raise InvalidInputError(f"A method named {name!r} is registered already; choose another name.")
    _methods[name] = method


def get_method(name: str) -> Method:
    """The method of a name.

    Raises:
        InvalidInputError: There is none.
    """
    if not isinstance(name, str) or name not in _methods:
        raise InvalidInputError(f"There is no method named {name!r}; there are {method_names()}.")
    return _methods[name]


def check_method(name: str, method: Any) -> None:
    """Raises InvalidInputError unless it can be called; `name` is what the argument is called."""
    if not callable(method):
        raise InvalidInputError(f"`{name}` must be a function from a text to its heatmaps (see `Method`), got {method!r}.")


def method_names() -> list[str]:
    """The names of all methods, in the order in which they were registered."""
    return list(_methods)


def heatmaps(text: PerturbedText, scores: Tensor) -> Tensor:
    """Scores `[R, N, S or S - 1]` in the form that `Method` describes.

    Raises:
        InvalidInputError: One of them is not finite: the model's weights are not, or its dtype has too small a range.
    """
    P, N, S = text.prompt_length, text.num_steps, text.token_ids.shape[1]
    full = torch.nn.functional.pad(scores.detach().float(), (0, S - scores.shape[-1]))
    seen = earlier_positions(P, N, S, device=full.device)
    full = full.masked_fill(~(seen & text.real[:, None] & text.step_mask[..., None]), 0)
    text.check_finite(full)
    return full
