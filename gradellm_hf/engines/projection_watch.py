"""Stepwise explanation of models that do not look up their attention function in Transformers' AttentionInterface.

The input of an attention module's output projection has the head outputs. `output_attentions` gives the attention weights. At
every step it is checked that the head outputs are the weights times the values.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..architecture.adapters import find_adapter
from ..architecture.compat import cache_of
from ..architecture.hooks import thread_hook
from ..errors import UnsupportedArchitectureError
from .formula import explains_head_outputs, head_heatmap
from .loop import AttentionWatch


class ProjectionWatch(AttentionWatch):
    """Head outputs from the output projections, values from the cache."""

    forward_kwargs: ClassVar[dict[str, Any]] = {"output_attentions": True}

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._head_outputs: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def open(self, cache: Any, num_positions: int) -> Iterator[None]:
        adapter, modules = find_adapter(self.facts.model), self.facts.attention
        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                projection = adapter.output_projection_of(modules[layer])
                handle = projection.register_forward_pre_hook(thread_hook(self._keep(layer)))
                stack.callback(handle.remove)
            yield

    def visible(self) -> Tensor:
        raise NotImplementedError  # `channel="attention_output"` is refused for models without the interface

    def backward(self, outputs: Any, gradient: Tensor) -> None:
        if self.formula_of is None:
            raise NotImplementedError  # `channel="attention_output"` is refused for models without the interface
        attentions = getattr(outputs, "attentions", None)
        if not attentions or any(weights is None for weights in attentions):
            raise UnsupportedArchitectureError(
                f"`{self.facts.model_type}` returns no attention weights with `output_attentions=True`, and does not "
                "call Transformers' AttentionInterface, so its attention cannot be seen."
            )
        kept = [self._head_outputs[layer] for layer in self.layers]
        gradients = torch.autograd.grad(outputs.logits[:, -1:], kept, gradient)
        for layer, head_outputs, head_gradients in zip(self.layers, kept, gradients, strict=True):
            # Accelerate brings what a model returns to the device of its input; the layer may be on another.
            weights = outputs.attentions[layer][:, :, -1:].detach().to(head_outputs.device)
            value = self._values(layer, outputs).to(head_outputs.device)
            output, head_gradient = (_by_head(x[:, -1:].detach(), weights.shape[1]) for x in (head_outputs, head_gradients))
            if not explains_head_outputs(weights, value, output):
                raise UnsupportedArchitectureError(
                    f"In attention layer {layer} of `{self.facts.model_type}`, what enters the output projection is "
                    "not the attention weights times the values, so this architecture cannot be explained exactly without "
                    "the AttentionInterface."
                )
            formula = self.formula_of(layer, weights.shape[1])
            self.record(layer, head_heatmap(formula, weights, value, head_gradient))

    def _values(self, layer: int, outputs: Any) -> Tensor:
        """`[R, G, T, Dv]`."""
        values: Tensor = cache_of(outputs).layers[layer].values
        return values.detach()

    def _keep(self, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            head_output = args[0]
            if layer == self.layers[0]:
                torch.set_grad_enabled(True)  # undone by the `no_grad` around the forward pass
                head_output = head_output.detach().requires_grad_()
            self._head_outputs[layer], self.head_widths[layer] = head_output, head_output.shape[-1]
            return (head_output, *args[1:])

        return hook


class PrefixProjectionWatch(ProjectionWatch):
    """The same for models without a cache: the whole prefix runs at every step, and values come from the value projections."""

    whole_prefix: ClassVar[bool] = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._value_states: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def open(self, cache: Any, num_positions: int) -> Iterator[None]:
        adapter, modules = find_adapter(self.facts.model), self.facts.attention
        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                for projection, by_name in adapter.projections(modules[layer]):
                    handle = projection.register_forward_hook(thread_hook(self._keep_values(layer, by_name)))
                    stack.callback(handle.remove)
            stack.enter_context(super().open(cache, num_positions))
            yield

    def _keep_values(
        self, layer: int, by_name: Callable[[Tensor], dict[str, Tensor]]
    ) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            states = by_name(output.detach())
            if "value" in states:
                self._value_states[layer] = states["value"]

        return hook

    def _values(self, layer: int, outputs: Any) -> Tensor:
        heads = outputs.attentions[layer].shape[1]
        return _by_head(self._value_states[layer], heads)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """`[R, N, H * D] -> [R, H, N, D]`."""
    by_head: Tensor = x.unflatten(-1, (heads, -1))
    return by_head.transpose(1, 2)
