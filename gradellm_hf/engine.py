"""The loop that both engines share: run a chunk of steps, evaluate the target, go backward, add up the heatmaps."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .architecture import attention_layers
from .attention import AttentionOptions, attention_handler
from .attention_output import AttentionOutputChannel
from .caches import detach_cache
from .configuration import GradELLMConfig
from .heatmaps import Heatmaps
from .sequences import ExplainedSequences
from .targets import contrast_ids, evaluate_target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Record = Callable[[int, Tensor], None]


class EngineAttention(ABC):
    """What an engine does in place of a model's attention function, during one forward pass and its backward pass.

    The forward pass starts without gradients; they are switched on when it reaches the lowest explained layer, so that
    nothing is kept of the layers below.

    Args:
        layers: Explained layers, ascending, as numbers of calls.
        spatial: Spatial importance at the head outputs; None where `channel="attention_output"` computes the heatmaps.
        record: Takes a layer and its signed heatmap, `[R, N, T]`; called in the backward pass.
    """

    def __init__(self, layers: list[int], spatial: str | None, record: Record):
        self.layers, self.spatial, self.record = layers, spatial, record
        self.num_calls = 0
        self._options: AttentionOptions | None = None

    def __call__(
        self,
        function: Callable,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **keywords: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layer = self.num_calls
        self.num_calls += 1
        options = AttentionOptions.from_call(module, query, key, attention_mask, scaling, keywords)
        self._options = options

        def own() -> tuple[Tensor, Tensor | None]:
            return function(module, query, key, value, attention_mask, scaling=scaling, **keywords)

        if layer >= self.layers[0]:
            torch.set_grad_enabled(True)  # undone by the `no_grad` around the forward pass
        return self.attend(layer, own, query, key, value, options)

    def current_mask(self) -> Tensor:
        """The mask of the latest call, `[R or 1, H or 1, N, T]`."""
        assert self._options is not None  # asked for in hooks that run after a call
        return self._options.mask

    @abstractmethod
    def attend(
        self, layer: int, own: Callable, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> tuple[Tensor, Tensor | None]:
        """The head outputs `[R, N, H, Dv]` and attention weights, as an attention function returns them.

        `own()` is the model's own attention on the same arguments.
        """

    @abstractmethod
    def backward(self, logits: Tensor, gradient: Tensor) -> None:
        """Backpropagates `gradient` from `logits` (both `[R, N, V]`) to the lowest explained layer, recording heatmaps."""


def explain_steps(
    model: "PreTrainedModel",
    sequences: ExplainedSequences,
    config: GradELLMConfig,
    layers: list[int],
    cache: Any,
    attention_type: type[EngineAttention],
    chunk_size: int,
) -> Heatmaps:
    """Explains the steps of `sequences` in chunks on top of a cache of the prompt.

    Args:
        layers: Explained layers, ascending.
        cache: Keys and values of the first `P - 1` positions, taken over; None: they are computed.
    """
    heatmaps = Heatmaps.empty(sequences, config, layers, model.dtype)
    foils = contrast_ids(config, sequences.generated_ids)
    channel = None
    if config.channel == "attention_output":
        modules = attention_layers(model)
        channel = AttentionOutputChannel(model, {i: modules[i] for i in layers}, config.spatial)
    with channel or torch.no_grad():
        if cache is None or channel is not None:
            cache = sequences.prefill(model)
        for first, last in sequences.step_chunks(chunk_size):
            start, steps = sequences.prompt_length - 1, slice(first, last)
            scale: Tensor

            def record(layer: int, heatmap: Tensor) -> None:
                heatmaps.add(layer, first, scale, heatmap)  # noqa: B023 - called before this iteration ends

            attention = attention_type(layers, None if channel else config.spatial, record)
            if channel:
                channel.open_chunk(attention.current_mask, record)
            with torch.no_grad(), attention_handler(attention):
                outputs = sequences.forward(model, start + first, start + last, cache)
            logits, cache = outputs.logits, outputs.past_key_values
            del outputs
            ids, mask = (x[:, steps].to(logits.device) for x in (sequences.generated_ids, sequences.step_mask))
            targets = evaluate_target(config, logits, ids, mask, None if foils is None else foils[:, steps].to(ids.device))
            heatmaps.set_targets(first, last, targets)
            scale = targets.scale
            attention.backward(logits, targets.gradient.to(logits.dtype))
            detach_cache(cache)
    return heatmaps
