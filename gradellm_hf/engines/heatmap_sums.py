"""The sums of the layers' heatmaps, to which the engines add."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..configuration import GradELLMConfig
from ..sequences.explained import ExplainedSequences
from .targets import TargetValues


@dataclass
class Heatmaps:
    """Heatmaps of steps, in float32 or wider. `N`: from the first step that is explained to the last one.

    Attributes:
        first_step: Of the sequences: earlier ones count as prompt there.
        steps: These steps, by their numbers in the whole text.
        attributions: `a[n, i]`, `[R, N, S]`; 0 for steps between them that are not explained.
        layer_attributions: `[R, len(layers), N, S]`, or None if not asked for.
        target_scores, token_probabilities: `[R, N]`.
    """

    layers: list[int]
    prompt_length: int
    first_step: int
    steps: range
    positive_only: bool
    attributions: Tensor
    layer_attributions: Tensor | None
    target_scores: Tensor
    token_probabilities: Tensor

    @classmethod
    def empty(cls, sequences: ExplainedSequences, config: GradELLMConfig, layers: list[int], dtype: torch.dtype) -> "Heatmaps":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.promote_types(dtype, torch.float32), device=sequences.token_ids.device)

        explained, before = sequences.explained_steps, sequences.first_step
        steps = range(before + explained[0], before + explained[-1] + 1) if explained else range(0)
        rows, length = sequences.token_ids.shape[0], sequences.length
        by_layer = zeros(rows, len(layers), len(steps), length) if config.output_layer_attributions else None
        return cls(
            layers=layers,
            prompt_length=sequences.prompt_length,
            first_step=before,
            steps=steps,
            positive_only=config.positive_only,
            attributions=zeros(rows, len(steps), length),
            layer_attributions=by_layer,
            target_scores=zeros(rows, len(steps)),
            token_probabilities=zeros(rows, len(steps)),
        )

    @property
    def kept_layer_attributions(self) -> Tensor:
        """`layer_attributions`, if they were asked for."""
        if self.layer_attributions is None:
            raise ValueError("The heatmaps of the layers were not asked for: `output_layer_attributions=True` keeps them.")
        return self.layer_attributions

    @property
    def are_finite(self) -> bool:
        """Whether scores, targets and probabilities are numbers."""
        parts = (self.attributions, self.target_scores, self.token_probabilities)
        return all(bool(part.isfinite().all()) for part in parts)

    def set_targets(self, first: int, last: int, targets: TargetValues) -> None:
        rows = self._rows(first, last)
        self.target_scores[:, rows] = targets.scores.to(self.target_scores)
        self.token_probabilities[:, rows] = targets.probabilities.to(self.token_probabilities)

    def chunk(self, first: int, last: int) -> "ChunkHeatmaps":
        """An empty collection for the steps `first:last`. Step `n` is predicted at position `P + n - 1`."""
        return ChunkHeatmaps(self._rows(first, last), self.prompt_length - 1 + last, self)

    def _rows(self, first: int, last: int) -> slice:
        before = self.steps.start - self.first_step
        return slice(first - before, last - before)

    def put(self, chunk: "ChunkHeatmaps", scale: Tensor) -> None:
        """Adds what a chunk has collected, times the scale of each step's gradient, `[R, N]`."""
        scale = scale.to(self.attributions)[..., None]
        for total in chunk.totals.values():
            self.attributions[:, chunk.rows, : chunk.end] += scale * total.to(self.attributions)
        for layer, heatmap in chunk.by_layer.items():
            where = (slice(None), self.layers.index(layer), chunk.rows, slice(chunk.end - heatmap.shape[-1], chunk.end))
            self.kept_layer_attributions[where] = scale * heatmap.to(self.attributions)


class ChunkHeatmaps:
    """The heatmaps that the backward pass of a chunk of steps finds, per unit of the scaled gradient.

    Each stays on the device of its layer until the backward pass is over. Autograd runs one thread per device. A thread runs
    its nodes on the stream on which the caller ran their forward pass, but it does not know the caller's streams on other
    devices. A copy to another device would be made on that device's default stream, and nobody would wait for it. So each
    thread adds up on its own device, and the caller adds the sums of the devices afterwards.

    Attributes:
        rows: Where the steps of the chunk are in the heatmaps.
        end: The number of positions that its last step sees.
        totals: By device, the sum of the heatmaps of its layers, `[R, N, end]`.
        by_layer: By layer, its heatmap over the last `T` of these positions, `[R, N, T]`; empty if not asked for.
    """

    def __init__(self, rows: slice, end: int, heatmaps: Heatmaps):
        self.rows, self.end = rows, end
        self.totals: dict[torch.device, Tensor] = {}
        self.by_layer: dict[int, Tensor] = {}
        self._dtype, self._positive_only = heatmaps.attributions.dtype, heatmaps.positive_only
        self._keeps_layers = heatmaps.layer_attributions is not None

    def add(self, layer: int, heatmap_RNT: Tensor) -> None:
        """Adds a layer's heatmap; called in the backward pass."""
        heatmap = heatmap_RNT.detach().to(self._dtype)
        if self._positive_only:
            heatmap = heatmap.relu()
        rows, steps, keys = heatmap.shape
        if heatmap.device not in self.totals:
            self.totals[heatmap.device] = heatmap.new_zeros(rows, steps, self.end)
        self.totals[heatmap.device][..., self.end - keys :] += heatmap
        if self._keeps_layers:
            self.by_layer[layer] = heatmap
