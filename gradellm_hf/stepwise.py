"""The stepwise engine: one token at a time through the model's own attention, with ordinary autograd.

With a single query everything in the cache is a constant, so plain autograd gives the exact gradient. Slow, and the
reference that the replay engine is tested against.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .architecture import calls_attention_interface
from .attention import AttentionOptions
from .configuration import GradELLMConfig
from .engine import AttentionWatch, InterfaceWatch, explain_steps
from .formula import group_heads, grouped_products, loosened_weights
from .heatmaps import Heatmaps
from .projection import PrefixProjectionWatch, ProjectionWatch
from .sequences import ExplainedSequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StepWatch(InterfaceWatch):
    """The model's own attention function, whose outputs are kept until their gradients are known."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._outputs: list[Tensor] = []
        self._heatmaps: list[Callable[[Tensor], Tensor]] = []

    def attend(
        self, layer: int, own: Callable, query: Tensor, key: Tensor, value: Tensor, options: Callable[[], AttentionOptions]
    ) -> tuple[Tensor, Tensor | None]:
        output, weights = own()
        if layer == self.layers[0]:
            output = output.detach().requires_grad_()
        if layer in self.layers:
            query, key, value = query.detach(), key.detach(), value.detach()
            own_weights = None if weights is None else weights.detach()
            settings = options() if own_weights is None or self.spatial == "loosened" else None
            self._outputs.append(output)
            self._heatmaps.append(lambda g: self._layer_heatmap(g, query, key, value, settings, own_weights))
        return output, weights

    def backward(self, outputs: Any, gradient: Tensor) -> None:
        gradients = torch.autograd.grad(outputs.logits, self._outputs, gradient)
        if self.spatial:
            for layer, heatmap, output_gradient in zip(self.layers, self._heatmaps, gradients, strict=True):
                self.record(layer, heatmap(output_gradient))

    def _layer_heatmap(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: AttentionOptions | None,
        own_weights: Tensor | None,
    ) -> Tensor:
        """`c[n, i] = sum_h w[p, h, i] <g[p, h], v[i, h]>` of the one query, `[R, 1, T]`."""
        precision, groups = torch.promote_types(query.dtype, torch.float32), key.shape[1]
        query, key, value, gradient = (x.to(precision) for x in (query, key, value, gradient.transpose(1, 2)))
        query, gradient = group_heads(query, groups), group_heads(gradient, groups)
        if options is None:
            assert own_weights is not None  # one of the two is always there
            weights = group_heads(own_weights.to(precision), groups)
        else:
            products = grouped_products(query, key)
            if self.spatial == "loosened":
                weights = loosened_weights(products, query, key[:, :, None], options.grouped_mask(groups))
            else:
                weights = options.weights(options.scores(products))
        return (weights * grouped_products(gradient, value)).sum((1, 2))


def stepwise(
    model: "PreTrainedModel", sequences: ExplainedSequences, config: GradELLMConfig, layers: list[int], cache: Any = None
) -> Heatmaps:
    """Explains one step after the other. Arguments as for `explain_steps`."""
    watch_type: type[AttentionWatch] = StepWatch
    if not calls_attention_interface(model):
        watch_type = ProjectionWatch if sequences.has_cache(model) else PrefixProjectionWatch
    return explain_steps(model, sequences, config, layers, cache, watch_type, 1)
