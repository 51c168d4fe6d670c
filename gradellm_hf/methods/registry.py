"""The methods by name, and the form of their results."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks.arguments import string
from ..errors import InvalidInputError
from ..metrics.perturbation import PerturbedText
from ..text.readable import earlier_positions


class Method(Protocol):
    """A way to explain text that exists: a function that returns a heatmap for every generated token.

    Examples:
        >>> def last_token(model, sequences, prompt_length, attention_mask=None):
        ...     scores = torch.zeros(len(sequences), sequences.shape[1] - prompt_length, sequences.shape[1])
        ...     return scores.index_fill(-1, torch.tensor([prompt_length - 1]), 1.0)  # all on the last prompt token
        >>> register_method("last_token", last_token)
        >>> get_method("last_token")(model, out.sequences, out.prompt_length).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """

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

        Raises:
            InvalidInputError: An argument or the state of the model is not usable, or a score is not finite.
            UnsupportedArchitectureError: The model is not a decoder-only model.
        """
        ...


_methods: dict[str, Method] = {}


def register_method(name: str, method: Method) -> None:
    """Makes a method known by a name.

    Args:
        name: Its name, which no other method has.
        method: See `Method`.

    Raises:
        InvalidInputError: The name is taken or no text, or the method cannot be called.

    Examples:
        >>> from functools import partial
        >>> register_method("grad_ellm_last_layer", partial(grad_ellm, explain_config=GradELLMConfig(layers=1)))
        >>> method_names()[-1]
        'grad_ellm_last_layer'
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

    Examples:
        >>> method = get_method("attention_mean")
        >>> method(model, out.sequences, out.prompt_length).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    if not isinstance(name, str) or name not in _methods:
        raise InvalidInputError(f"There is no method named {name!r}; there are {method_names()}.")
    return _methods[name]


def check_method(name: str, method: Any) -> None:
    """Raises InvalidInputError unless it can be called; `name` is what the argument is called."""
    if not callable(method):
        raise InvalidInputError(f"`{name}` must be a function from a text to its heatmaps (see `Method`), got {method!r}.")


def method_names() -> list[str]:
    """The names of all methods, in the order in which they were registered.

    Examples:
        >>> method_names()
        ['grad_ellm', ..., 'context_cite', 'random']
    """
    return list(_methods)


def heatmaps(text: PerturbedText, scores: Tensor) -> Tensor:
    """Scores `[R, N, S or S - 1]` in the form that `Method` describes.

    Raises:
        InvalidInputError: A score is not finite: the model's weights are not, or the range of its dtype is too small.
    """
    P, N, S = text.prompt_length, text.num_steps, text.token_ids.shape[1]
    full = torch.nn.functional.pad(scores.detach().float(), (0, S - scores.shape[-1]))
    seen = earlier_positions(P, N, S, device=full.device)
    full = full.masked_fill(~(seen & text.real[:, None] & text.step_mask[..., None]), 0)
    text.check_finite(full)
    return full
