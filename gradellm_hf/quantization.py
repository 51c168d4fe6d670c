"""Quantised models: gradients with respect to activations need weights in a form that has a backward pass."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def is_quantized(model: nn.Module) -> bool:
    """Whether the model's logits may depend, by more than rounding, on how many tokens are run at once."""
    return getattr(model, "hf_quantizer", None) is not None


@contextmanager
def differentiable_weights(model: nn.Module) -> Iterator[None]:
    """A context in which bitsandbytes' 4-bit layers on a CPU have their ordinary form.

    In inference they pack their weights for a kernel without a backward pass. Here they are unpacked by bitsandbytes' own
    inverse, which rounds their scales once more; afterwards the packed weights are put back, so that generation stays the same.
    """
    layers: list[Any] = [module for module in model.modules() if getattr(module, "support_avx512bf16_for_cpu", False)]
    packed: list[tuple[Any, Any, Any]] = []
    try:
        for layer in layers:
            layer.support_avx512bf16_for_cpu = False
            weight, state = layer.weight, getattr(layer.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                packed.append((weight, weight.data, state))
                weight.data, weight.quant_state = _unpacked(weight.data, copy.copy(state))
        yield
    finally:
        for weight, data, state in packed:
            weight.data, weight.quant_state = data, state
        for layer in layers:
            layer.support_avx512bf16_for_cpu = True


def _unpacked(data: Any, state: Any) -> tuple[Any, Any]:
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    data, state = _convert_weight_packed_for_cpu_inverse(data, state)
    if state.absmax.ndim == 2:  # left by the inverse as the kernel wants it: by column, in bfloat16
        state.absmax = state.absmax.T.reshape(-1).float()
    return data, state
