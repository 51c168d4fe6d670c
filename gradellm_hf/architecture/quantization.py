"""Quantised models: gradients of activations need the weights in a form that has a backward pass."""

import copy
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from torch import nn

from .switches import shared

_differentiates: ContextVar[bool] = ContextVar("gradellm_differentiates", default=False)


def is_quantized(model: nn.Module) -> bool:
    """Whether the model's logits may depend, by more than rounding, on how many tokens are run at once.

    A model that was dequantised when it was loaded, or whose GGUF file Transformers does not keep packed, has plain weights.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return False
    config = getattr(quantizer, "quantization_config", None)
    return bool(getattr(quantizer, "packed_modules", True)) and not getattr(config, "dequantize", False)


@contextmanager
def differentiable_weights(model: nn.Module) -> Iterator[None]:
    """A context in which this thread multiplies with bitsandbytes' 4-bit weights in their ordinary form. For CPUs.

    For inference on a CPU they are packed for a kernel that has no backward pass. Here they are unpacked by the inverse that
    bitsandbytes has for it, which rounds their scales once more. The model keeps the packed weights, so other threads may
    generate meanwhile.
    """
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    if not layers:
        yield
        return
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_not_packed(layer))
        stack.enter_context(_ordinary_products())
        stack.callback(_differentiates.reset, _differentiates.set(True))
        yield


@shared
@contextmanager
def _not_packed(layer: Any) -> Iterator[None]:
    """A context in which weights that are not packed yet stay as they are."""
    before, layer.support_avx512bf16_for_cpu = layer.support_avx512bf16_for_cpu, False
    try:
        yield
    finally:
        layer.support_avx512bf16_for_cpu = before


@shared
@contextmanager
def _ordinary_products() -> Iterator[None]:
    """A context in which packed weights are unpacked when a thread that differentiates multiplies with them.

    They are unpacked once for all such threads.
    """
    import bitsandbytes

    library: Any = bitsandbytes
    own, lock = library.matmul_4bit, threading.Lock()
    unpacked: dict[int, tuple[Any, Any, Any]] = {}  # by the identity of the packed weights' state, which is kept with them

    @wraps(own)
    def product(x: Any, weight: Any, quant_state: Any, *args: Any, **kwargs: Any) -> Any:
        if _differentiates.get() and getattr(quant_state, "packing_format_for_cpu", False):
            with lock:
                if id(quant_state) not in unpacked:
                    unpacked[id(quant_state)] = quant_state, *_unpacked(weight.data, copy.copy(quant_state))
                _, weight, quant_state = unpacked[id(quant_state)]
        return own(x, weight, quant_state, *args, **kwargs)

    library.matmul_4bit = product
    try:
        yield
    finally:
        library.matmul_4bit = own


def _unpacked(data: Any, state: Any) -> tuple[Any, Any]:
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    data, state = _convert_weight_packed_for_cpu_inverse(data, state)
    if state.absmax.ndim == 2:  # left by the inverse as the kernel wants it: by column, in bfloat16
        state.absmax = state.absmax.T.reshape(-1).float()
    return data, state
