"""The state in which the engines run a model, whatever state the caller has it in."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from .identity import findings
from .plain_attention import attention_implementation, needs_plain_attention, plain_attention
from .quantization import differentiable_weights
from .switches import shared

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def explainable(model: "PreTrainedModel", padded: bool = False) -> Iterator[None]:
    """The context in which engines run a model: no inference mode, no compiled modules, and an attention that can be watched.

    Args:
        padded: Whether some rows of what is to be explained are padded.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(differentiable_weights(model))
        if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules()):
            stack.enter_context(_uncompiled())
        layout = findings(model).layout
        if needs_plain_attention(model):
            stack.enter_context(attention_implementation(model, plain_attention(model, padded)))
        elif layout is not None and not layout.calls_interface:
            stack.enter_context(attention_implementation(model, "eager"))  # which returns its attention weights
        yield


@shared
@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield
