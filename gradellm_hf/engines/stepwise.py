"""The stepwise engine: one token at a time through the model's own attention, with ordinary autograd.

With a single query, everything in the cache is a constant, so plain autograd gives the exact gradient. This is slow. It is the
reference with which the replay engine is tested.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..architecture.facts import ModelFacts
from ..configuration import GradELLMConfig
from ..errors import UnsupportedArchitectureError
from ..sequences.explained import ExplainedSequences
from ..sequences.written_logits import LogitsDifferError
from .formula import explains_head_outputs, group_heads, group_mask, grouped_products, head_heatmap, loosened_weights
from .heatmap_sums import Heatmaps
from .loop import AttentionResult, AttentionWatch, InterfaceWatch, Watch, explain_steps
from .position_local import AttentionOptions
from .projection_watch import PrefixProjectionWatch, ProjectionWatch


class StepWatch(InterfaceWatch):
    """Runs the model's own attention function, and keeps its outputs until their gradients are known."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._outputs: list[Tensor] = []
        self._heatmaps: list[Callable[[Tensor], Tensor]] = []

    def attend(
        self,
        layer: int,
        own: Callable[[], AttentionResult],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: Callable[[], AttentionOptions],
    ) -> AttentionResult:
        output, weights = own()
        if layer >= self.layers[0] and not output.requires_grad:
            output = output.detach().requires_grad_()
        if layer in self.layers:
            self._outputs.append(output)
            if self.formula_of:
                formula = self.formula_of(layer, query.shape[1])
                spatial_weights = self._weights(formula.spatial, query, key, value, options, weights, output.detach())
                self._heatmaps.append(functools.partial(head_heatmap, formula, spatial_weights, value.detach()))
        return output, weights

    def backward(self, outputs: Any, gradient: Tensor) -> None:
        gradients = torch.autograd.grad(outputs.logits[:, -1:], self._outputs, gradient, allow_unused=True)
        for layer, heatmap, output_gradient in zip(self.layers, self._heatmaps, gradients, strict=bool(self.formula_of)):
            if output_gradient is not None:
                self.record(layer, heatmap(output_gradient[:, -1:].transpose(1, 2)))

    @torch.no_grad()
    def _weights(
        self,
        spatial: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: Callable[[], AttentionOptions],
        own: Tensor | None,
        output: Tensor,
    ) -> Tensor:
        """Spatial importance of the last query, `[R, H, 1, T]`.

        These are the model's own attention weights, if times the values they give the head outputs (some models leave a sink
        out of them). If not, they are those of the formula, which must give them.
        """
        last, output = slice(-1, None), output[:, -1:].transpose(1, 2)
        if spatial == "attention" and own is not None and explains_head_outputs(own[:, :, last], value, output):
            return own[:, :, last].detach()  # a view would keep the graph
        settings, groups = options().part(last), key.shape[1]
        precision = torch.promote_types(query.dtype, torch.float32)
        query, key = group_heads(query[:, :, last], groups).to(precision), key.to(precision)
        products = grouped_products(query, key)
        weights = settings.weights(settings.scores(products)).flatten(1, 2)
        if not explains_head_outputs(weights, value, output):
            raise UnsupportedArchitectureError(
                f"`{self.facts.model_type}` computes its attention in a way that is not known here: its head outputs "
                'are not the attention weights times the values. Load the model with `attn_implementation="eager"`.'
            )
        if spatial == "loosened":
            weights = loosened_weights(products, query, key[:, :, None], group_mask(settings.mask, groups)).flatten(1, 2)
        return weights


class PrefixStepWatch(StepWatch):
    """The same for models that keep no cache from call to call: the whole prefix runs at every step."""

    whole_prefix: ClassVar[bool] = True


def stepwise(
    facts: ModelFacts,
    sequences: ExplainedSequences,
    config: GradELLMConfig,
    layers: list[int],
    cache: Any = None,
    prompt_at_once: bool = False,
    watch: Watch | None = None,
) -> Heatmaps:
    """Explains one step after the other. Arguments and errors as for `explain_steps`."""
    watch_type: type[AttentionWatch]
    if facts.calls_interface:
        watch_type = StepWatch if facts.keeps_cache else PrefixStepWatch
    else:
        watch_type = ProjectionWatch if facts.keeps_cache else PrefixProjectionWatch
    return explain_steps(facts, sequences, config, layers, cache, watch_type, 1, prompt_at_once, watch)


def stepwise_as_written(
    facts: ModelFacts,
    sequences: ExplainedSequences,
    config: GradELLMConfig,
    layers: list[int],
    cache: Any = None,
    watch: Watch | None = None,
) -> Heatmaps:
    """The same as `stepwise`; with the whole prompt in one call, as `generate` read it, if that makes a difference.

    It does in models that compute something else with several tokens than with one, such as a model that is steered while it
    decodes.
    """
    try:
        return stepwise(facts, sequences, config, layers, cache, watch=watch)
    except LogitsDifferError as error:
        is_first = sequences.first_step == 0 and error.step == sequences.explained_steps[0]
        if not is_first or not sequences.can_be_read_at_once:
            raise
    return stepwise(facts, sequences, config, layers, prompt_at_once=True, watch=watch)
