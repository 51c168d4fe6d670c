"""Attention that can be watched (sdpa or eager), in place of a model's own that cannot (flash, flex, a user's)."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UnsupportedArchitectureError
from .identity import findings
from .reading import input_device, vocabulary_size
from .switches import shared
from .tolerances import OTHER_KERNELS, logits_difference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IMPLEMENTATION = "_attn_implementation"  # the property of configs
_PROBE_LENGTH = 64  # positions; chosen by hand: enough for masks, padding and positions to matter, and cheap

#: By the identity of a config: the attention implementation that it has in this thread.
_switched: ContextVar[dict[int, str]] = ContextVar("gradellm_switched_attention", default={})  # noqa: B039 - never changed


def needs_plain_attention(model: "PreTrainedModel") -> bool:
    """Whether the model, or a part of it, runs with an attention that cannot be watched: flash, flex or a user's own."""
    configs = map(_config_of, model.modules())
    return any(config._attn_implementation not in (None, "eager", "sdpa") for config in configs if config is not None)


def plain_attention(model: "PreTrainedModel", padded: bool) -> str:
    """What computes the same as the model's own attention: sdpa, or eager if sdpa cannot express it (soft-capping, sinks).

    Found by running a short text with both, once per model.

    Raises:
        UnsupportedArchitectureError: Neither does: they differ from it by more than rounding.
    """
    supported = all(getattr(module, "_supports_sdpa", True) for module in model.modules())
    candidates = ("sdpa", "eager") if supported else ("eager",)
    for plain in candidates:
        if _difference(model, plain, padded) <= OTHER_KERNELS.of(model.dtype):
            return plain
    plain, own = candidates[0], _own_attention(model)
    raise UnsupportedArchitectureError(
        f"The attention implementation `{own}` cannot be watched, and `{plain}`, with which the model would be explained "
        f"instead, changes its logits by {_difference(model, plain, padded):.1e} of their size: it computes something else. "
        f'Load the model with `attn_implementation="{plain}"`, and generate and explain with that.'
    )


def _own_attention(model: "PreTrainedModel") -> str | None:
    name: str | None = model.config.get_text_config(decoder=True)._attn_implementation
    return name


def _difference(model: "PreTrainedModel", plain: str, padded: bool) -> float:
    """Of the logits with this attention from those with the model's own, relative to the largest."""
    key = (_own_attention(model), plain, model.dtype, padded)
    differences = findings(model).differences
    if key not in differences:
        length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or _PROBE_LENGTH
        text = torch.arange(min(length, _PROBE_LENGTH), device=input_device(model))[None] % vocabulary_size(model)
        padding = text.shape[1] // 8 if padded else 0
        mask = (torch.arange(text.shape[1], device=text.device) >= padding).long()[None]
        with torch.no_grad():
            expected = model(input_ids=text, attention_mask=mask, return_dict=True).logits[:, padding:]
            with attention_implementation(model, plain):
                actual = model(input_ids=text, attention_mask=mask, return_dict=True).logits[:, padding:]
        differences[key] = logits_difference(actual, expected)
    return differences[key]


@contextlib.contextmanager
def attention_implementation(model: "PreTrainedModel", name: str) -> Iterator[None]:
    """A context in which the model has another attention implementation, in this thread only. Other threads may generate.

    Modules read its name from their configs, so the configs are changed. `set_attn_implementation` does not work for all:
    it refuses architectures that choose between implementations of their own.
    """
    configs = {id(config): config for config in map(_config_of, model.modules()) if config is not None}
    with contextlib.ExitStack() as stack:
        for config in configs.values():
            stack.enter_context(_switchable(_class_that_defines_attention(config)))
        token = _switched.set({**_switched.get(), **dict.fromkeys(configs, name)})
        stack.callback(_switched.reset, token)
        yield


def _config_of(module: nn.Module) -> Any:
    from transformers import PreTrainedConfig

    config = getattr(module, "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def _class_that_defines_attention(config: Any) -> type:
    """The class whose property has it: Transformers' own class of configs, or a subclass that defines the property anew."""
    classes = type(config).__mro__
    return next(cls for cls in classes if isinstance(vars(cls).get(_IMPLEMENTATION), property))


@shared
@contextlib.contextmanager
def _switchable(config_class: type) -> Iterator[None]:
    """A context in which configs of this class have, in each thread, the implementation to which that thread switched them."""
    own: Any = vars(config_class)[_IMPLEMENTATION]

    def switched(config: Any) -> str | None:
        return _switched.get().get(id(config)) or own.fget(config)

    setattr(config_class, _IMPLEMENTATION, property(switched, own.fset))
    try:
        yield
    finally:
        setattr(config_class, _IMPLEMENTATION, own)
