"""Gradients with frozen norms and AttnLRP's rule for gated MLPs: the same values forward, other gradients backward."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def frozen_norms(model: Any) -> Iterator[None]:
    """While it is open, the norm of an RMS norm counts as a constant, and so does the slope of a gated MLP's activation.

    The product of gate and value passes half of the gradient on to each. Source: Achtibat et al. 2024 (arXiv 2402.05602),
    propositions 3.2 and 3.4. For Llama and Gemma 3.
    """
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                stack.enter_context(mock.patch.object(module, "forward", _norm(module, module.forward)))
            elif type(module).__name__.endswith("MLP"):
                stack.enter_context(mock.patch.object(module, "forward", _gated(module)))
        yield


def _norm(module: nn.Module, forward: Any) -> Any:
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    offset = 1.0 if type(module).__name__.startswith("Gemma3") else 0.0

    def frozen(x: Tensor) -> Tensor:
        weight: Any = module.weight
        scale = torch.rsqrt(x.detach().pow(2).mean(-1, keepdim=True) + epsilon) * (offset + weight.detach())
        y: Tensor = forward(x.detach())
        return y + (x - x.detach()) * scale

    return frozen


def _gated(module: Any) -> Any:
    def frozen(x: Tensor) -> Tensor:
        gate, up = module.gate_proj(x), module.up_proj(x)
        activated = module.act_fn(gate.detach())
        slope = torch.where(gate.detach() == 0, 0.5, activated / torch.where(gate.detach() == 0, 1, gate.detach()))
        value = activated + (gate - gate.detach()) * slope
        product = value * up
        half: Tensor = module.down_proj(product.detach() + (product - product.detach()) / 2)
        return half

    return frozen
