"""The replay engine: every step explained in one forward and one backward pass over the generated tokens."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..architecture.facts import ModelFacts
from ..architecture.tensor_parallel import smallest
from ..configuration import GradELLMConfig
from ..sequences.explained import ExplainedSequences
from .heatmap_sums import Heatmaps
from .loop import AttentionResult, InterfaceWatch, explain_steps
from .memory import chunk_size
from .position_local import AttentionOptions, attention_output, position_local_attention


class ReplayWatch(InterfaceWatch):
    """Position-local attention in place of the model's own; its backward pass gives the heatmaps."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.anchor = torch.zeros((), requires_grad=True)

    def attend(
        self,
        layer: int,
        own: Callable[[], AttentionResult],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: Callable[[], AttentionOptions],
    ) -> AttentionResult:
        if layer < self.layers[0]:
            output = attention_output(query, key, value, options())
        else:
            explained = self.formula_of if layer in self.layers else None
            formula = explained(layer, query.shape[1]) if explained else None
            record = functools.partial(self.record, layer) if explained else None
            output = position_local_attention(self.anchor, query, key, value, options(), formula, record)
        return output.transpose(1, 2).contiguous(), None

    def backward(self, outputs: Any, gradient: Tensor) -> None:
        torch.autograd.grad(outputs.logits, self.anchor, gradient, allow_unused=True)


def replay(
    facts: ModelFacts, sequences: ExplainedSequences, config: GradELLMConfig, layers: list[int], cache: Any = None
) -> Heatmaps:
    """Explains every step at once: the query positions of all steps run as one chunk on a cache of the prompt.

    There are several chunks if one would take too much memory. Arguments and errors as for `explain_steps`.
    """
    size = config.step_chunk_size
    if size is None:
        free = chunk_size(facts, sequences, len(facts.attention) - layers[0])
        size = smallest(free, facts.sharing_groups)
    return explain_steps(facts, sequences, config, layers, cache, ReplayWatch, size)
