"""The replay engine: every step explained in one forward and one backward pass over the generated tokens."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .architecture import vocabulary_size
from .attention import AttentionOptions, PositionLocalAttention, attention_output
from .configuration import GradELLMConfig
from .engine import InterfaceWatch, explain_steps
from .heatmaps import Heatmaps
from .sequences import ExplainedSequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK_LOGITS = 2**25  # elements of the logits of one chunk: 128 MiB in float32
_CHUNK_MASK = 2**22  # elements of the mask of one chunk: 4 MiB, times the query heads that share a key/value head
_CHUNK_TOKENS = 512


class ReplayWatch(InterfaceWatch):
    """Position-local attention in place of the model's own; the heatmaps fall out of its backward pass."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.anchor = torch.zeros((), requires_grad=True)

    def attend(
        self, layer: int, own: Callable, query: Tensor, key: Tensor, value: Tensor, options: Callable[[], AttentionOptions]
    ) -> tuple[Tensor, Tensor | None]:
        if layer < self.layers[0]:
            output = attention_output(query, key, value, options())
        else:
            record = functools.partial(self.record, layer) if self.spatial and layer in self.layers else None
            settings = options()
            output = PositionLocalAttention.apply(self.anchor, query, key, value, settings.mask, settings, self.spatial, record)
        return output.transpose(1, 2).contiguous(), None

    def backward(self, outputs: Any, gradient: Tensor) -> None:
        torch.autograd.grad(outputs.logits, self.anchor, gradient, allow_unused=True)


def replay(
    model: "PreTrainedModel", sequences: ExplainedSequences, config: GradELLMConfig, layers: list[int], cache: Any = None
) -> Heatmaps:
    """Explains every step at once: the query positions of all steps run as one chunk on a cache of the prompt.

    Several chunks, where one would take too much memory. Arguments as for `explain_steps`.
    """
    size = config.step_chunk_size or _chunk_size(model, sequences)
    return explain_steps(model, sequences, config, layers, cache, ReplayWatch, size)


def _chunk_size(model: "PreTrainedModel", sequences: ExplainedSequences) -> int:
    rows = sequences.token_ids.shape[0]
    steps = min(_CHUNK_TOKENS, _CHUNK_LOGITS // vocabulary_size(model), _CHUNK_MASK // sequences.length)
    return max(1, steps // rows)
