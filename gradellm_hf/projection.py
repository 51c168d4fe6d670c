"""Stepwise explanation of models that do not look up their attention function in Transformers' AttentionInterface.

Their head outputs are what goes into the output projection of an attention module; their attention weights are asked for
with `output_attentions`. That the one is the other times the values is checked at every step.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model_patches import find_adapter

from .architecture import attention_implementation, attention_layers
from .engine import AttentionWatch
from .errors import UnsupportedArchitectureError
from .formula import group_heads, grouped_products
from .hooks import thread_hook

_TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 3e-3}  # of the largest head output; elsewhere 1e-4


class ProjectionWatch(AttentionWatch):
    """Head outputs from the output projections, values from the cache."""

    forward_kwargs: ClassVar[dict[str, Any]] = {"output_attentions": True}

    def __init__(self, *args: Any):
        super().__init__(*args)
        if self.spatial != "attention":
            raise UnsupportedArchitectureError(
                f"`{self.model.config.model_type}` does not call Transformers' AttentionInterface, so its queries and keys "
                'cannot be seen. Use `spatial="attention"` and `channel="heads"`.'
            )
        self._head_outputs: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        adapter, modules = find_adapter(self.model), attention_layers(self.model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(attention_implementation(self.model, "eager"))  # others do not return their weights
            for layer in self.layers:
                projection = adapter.output_projection_of(modules[layer])
                handle = projection.register_forward_pre_hook(thread_hook(self._keep(layer)))
                stack.callback(handle.remove)
            yield

    def visible(self) -> Tensor:
        raise NotImplementedError  # refused in the constructor

    def backward(self, outputs: Any, gradient: Tensor) -> None:
        head_outputs = [self._head_outputs[layer] for layer in self.layers]
        gradients = torch.autograd.grad(outputs.logits[:, -1:], head_outputs, gradient)
        for layer, head_output, head_gradient in zip(self.layers, head_outputs, gradients, strict=True):
            weights, value = outputs.attentions[layer][:, :, -1:].detach(), self._values(layer, outputs)
            self._check(layer, weights, value, head_output[:, -1:].detach())
            self.record(layer, _heatmap(weights, value, head_gradient[:, -1:]))

    def _values(self, layer: int, outputs: Any) -> Tensor:
        """`[R, G, T, Dv]`."""
        return outputs.past_key_values.layers[layer].values.detach()

    def _keep(self, layer: int) -> Callable:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            head_output = args[0]
            if layer == self.layers[0]:
                torch.set_grad_enabled(True)  # undone by the `no_grad` around the forward pass
                head_output = head_output.detach().requires_grad_()
            self._head_outputs[layer] = head_output
            return (head_output, *args[1:])

        return hook

    def _check(self, layer: int, weights: Tensor, value: Tensor, head_output: Tensor) -> None:
        groups = value.shape[1]
        expected = (group_heads(weights.to(value.dtype), groups).flatten(2, 3) @ value).flatten(1, 2).flatten(1)
        if expected.shape[1] == head_output.shape[-1]:
            error = (expected - head_output[:, 0]).abs().max() / head_output.abs().max()
            if error <= _TOLERANCES.get(value.dtype, 1e-4):
                return
        raise UnsupportedArchitectureError(
            f"In attention layer {layer} of `{self.model.config.model_type}`, what enters the output projection is not the "
            "attention weights times the values, so this architecture cannot be explained exactly without an "
            "AttentionInterface."
        )


class PrefixProjectionWatch(ProjectionWatch):
    """The same for models without a cache: the whole prefix runs at every step, values come from the value projections."""

    whole_prefix: ClassVar[bool] = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._value_states: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        adapter, modules = find_adapter(self.model), attention_layers(self.model)
        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                for projection, by_name in adapter.projections(modules[layer]):
                    handle = projection.register_forward_hook(thread_hook(self._keep_values(layer, by_name)))
                    stack.callback(handle.remove)
            stack.enter_context(super().open())
            yield

    def _keep_values(self, layer: int, by_name: Callable[[Tensor], dict[str, Tensor]]) -> Callable:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if (value := by_name(output.detach()).get("value")) is not None:
                self._value_states[layer] = value

        return hook

    def _values(self, layer: int, outputs: Any) -> Tensor:
        heads = outputs.attentions[layer].shape[1]
        return self._value_states[layer].unflatten(-1, (heads, -1)).transpose(1, 2)


def _heatmap(weights: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """`c[n, i] = sum_h A[p, h, i] <g[p, h], v[i, h]>`, `[R, 1, T]`.

    Args:
        weights: `[R, H, 1, T]`.
        value: `[R, G, T, Dv]`.
        gradient: At the output projection's input, `[R, 1, H * Dv]`.
    """
    precision, groups = torch.promote_types(value.dtype, torch.float32), value.shape[1]
    gradient = gradient.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
    weights, value, gradient = (x.to(precision) for x in (weights, value, gradient))
    return (group_heads(weights, groups) * grouped_products(group_heads(gradient, groups), value)).sum((1, 2))
