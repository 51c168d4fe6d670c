"""Where the engines add up the heatmaps of the layers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .configuration import GradELLMConfig
from .sequences import ExplainedSequences
from .targets import TargetValues


@dataclass
class Heatmaps:
    """Heatmaps of all steps, in float32 or wider.

    Attributes:
        attributions: `a[n, i]`, `[R, N, S]`.
        layer_attributions: `[R, len(layers), N, S]`, or None where not asked for.
        target_scores, token_probabilities: `[R, N]`.
    """

    layers: list[int]
    prompt_length: int
    positive_only: bool
    attributions: Tensor
    layer_attributions: Tensor | None
    target_scores: Tensor
    token_probabilities: Tensor

    @classmethod
    def empty(cls, sequences: ExplainedSequences, config: GradELLMConfig, layers: list[int], dtype: torch.dtype) -> "Heatmaps":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.promote_types(dtype, torch.float32), device=sequences.token_ids.device)

        rows, steps, length = sequences.token_ids.shape[0], sequences.num_steps, sequences.length
        by_layer = zeros(rows, len(layers), steps, length) if config.output_layer_attributions else None
        return cls(
            layers=layers,
            prompt_length=sequences.prompt_length,
            positive_only=config.positive_only,
            attributions=zeros(rows, steps, length),
            layer_attributions=by_layer,
            target_scores=zeros(rows, steps),
            token_probabilities=zeros(rows, steps),
        )

    @property
    def are_finite(self) -> bool:
        """Whether scores, targets and probabilities are numbers."""
        parts = (self.attributions, self.target_scores, self.token_probabilities)
        return all(bool(part.isfinite().all()) for part in parts)

    def set_targets(self, first: int, last: int, targets: TargetValues) -> None:
        self.target_scores[:, first:last] = targets.scores.to(self.target_scores)
        self.token_probabilities[:, first:last] = targets.probabilities.to(self.token_probabilities)

    def add(self, layer: int, first: int, scale: Tensor, heatmap_RNT: Tensor) -> None:
        """Adds a layer's heatmap of the steps from `first` on.

        Step `n` is predicted at position `P + n - 1`; the last key is that of the last step's position.
        """
        _, steps, keys = heatmap_RNT.shape
        scaled = heatmap_RNT.detach().to(self.attributions) * scale.to(self.attributions)[..., None]
        if self.positive_only:
            scaled = scaled.relu_()
        end = self.prompt_length - 1 + first + steps
        where = (slice(first, first + steps), slice(end - keys, end))
        self.attributions[:, *where] += scaled
        if self.layer_attributions is not None:
            self.layer_attributions[:, self.layers.index(layer), *where] += scaled

    def clear(self, first: int, last: int) -> None:
        """Takes back what has been added to the steps `first:last`."""
        self.attributions[:, first:last] = 0
        if self.layer_attributions is not None:
            self.layer_attributions[:, :, first:last] = 0
