"""Models that accelerate offloads: their weights are loaded again for the backward pass, not kept from the forward pass.

Accelerate brings a module's weights to the execution device when the module runs, and drops them afterwards. Autograd saves
what the backward pass needs, and that includes weights. So a backward pass through an offloaded model would gather the whole
model in memory. Here, each saved weight is replaced by a note that says where it came from. When the backward pass needs it, it
is loaded from there. At any time, memory holds the weights of one module.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .hooks import thread_hook
from .switches import shared


class OffloadHook(Protocol):
    """What is used of an `AlignDevicesHook` of accelerate, one that offloads."""

    weights_map: Mapping[str, Tensor]
    execution_device: torch.device | int | str
    place_submodules: bool


@dataclass(frozen=True)
class _OffloadedWeight:
    """A view of a weight that is not in memory: which weight to load, and the view's place in it."""

    hook: OffloadHook
    name: str
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    storage_offset: int

    def load(self) -> Tensor:
        weight = self.hook.weights_map[self.name].to(self.hook.execution_device, self.dtype)
        return weight.contiguous().as_strided(self.size, self.stride, self.storage_offset)


@contextmanager
def reload_offloaded_weights(model: nn.Module) -> Iterator[None]:
    """A context for forward passes with gradients, whose graph keeps no offloaded weight. It does nothing for other models.

    Gradients of the offloaded weights themselves are not recorded: the nodes for them would keep the weights alive.
    """
    hooks = {module: offload_hook(module) for module in model.modules()}
    offloaded = {module: hook for module, hook in hooks.items() if hook is not None}
    if not offloaded:
        yield
        return
    running: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    def pack(saved: Tensor) -> Tensor | _OffloadedWeight:
        for module in reversed(running):
            hook = offloaded[module]
            for name, weight in module.named_parameters(recurse=hook.place_submodules):
                if _shares_memory(saved, weight) and weight.is_contiguous():
                    return _OffloadedWeight(hook, name, saved.dtype, saved.size(), saved.stride(), int(saved.storage_offset()))
        return saved

    def unpack(packed: Tensor | _OffloadedWeight) -> Tensor:
        return packed.load() if isinstance(packed, _OffloadedWeight) else packed

    with ExitStack() as stack:
        for module in offloaded:
            for part in module.modules():
                stack.enter_context(_frozen(part))
            stack.callback(module.register_forward_pre_hook(thread_hook(enter)).remove)
            stack.callback(module.register_forward_hook(thread_hook(leave), always_call=True).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, unpack))
        yield


def offload_hook(module: nn.Module) -> OffloadHook | None:
    """The accelerate hook that loads a module's weights and drops them again; None if they stay."""
    hook: Any = getattr(module, "_hf_hook", None)
    for candidate in getattr(hook, "hooks", (hook,)):
        if getattr(candidate, "offload", False) and getattr(candidate, "weights_map", None) is not None:
            offloading: OffloadHook = candidate
            return offloading
    return None


def _shares_memory(x: Tensor, weight: Tensor) -> bool:
    if weight.device.type == "meta":
        return False
    address = weight.untyped_storage().data_ptr()
    return address != 0 and x.untyped_storage().data_ptr() == address


@shared
@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """A context in which the module's own parameters need no gradient. Those that accelerate puts in their place neither."""
    before = {name: parameter.requires_grad for name, parameter in module.named_parameters(recurse=False)}
    try:
        for name in before:
            module.get_parameter(name).requires_grad_(False)
        yield
    finally:
        for name, requires_grad in before.items():
            module.get_parameter(name).requires_grad_(requires_grad)
