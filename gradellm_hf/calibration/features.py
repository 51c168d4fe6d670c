"""What each head contributes to a heatmap: the features that are weighted, before they are added up."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..architecture.facts import ModelFacts
from ..configuration import GradELLMConfig
from ..engines.explain import explain
from ..engines.formula import HeadFormula, magnitudes
from ..sequences.explained import ExplainedSequences

#: Of attention weights `w`, contributions `w <g, v>`, gradients and values, as `HeadFormula.sum_heads` takes them.
Feature = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
FEATURES: dict[str, Feature] = {
    "contribution": lambda weights, contributions, gradient, value: contributions.relu(),
    "magnitude": lambda weights, contributions, gradient, value: magnitudes(weights, gradient, value),
}


@dataclass(frozen=True)
class _WatchedFormula(HeadFormula):
    """Keeps the features of every head, `[F, H, n, K]`, whenever it adds up the heads of a block of queries.

    Args:
        features: What is kept.
        blocks: Where they are kept, in the order of the queries.
        sources: Positions, `[K]`.
        end: The number of positions that the last query of the chunk sees; the last key is the last of them.
    """

    features: Any = None
    blocks: Any = None
    sources: Any = None
    end: int = 0

    def sum_heads(self, weights: Tensor, contributions: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        of_heads = (feature(weights, contributions, gradient, value) for feature in self.features)
        found = torch.stack([feature[0].flatten(0, 1) for feature in of_heads])
        first = self.end - found.shape[-1]
        seen = (self.sources >= first) & (self.sources < self.end)
        kept = torch.zeros(*found.shape[:-1], len(self.sources))
        kept[..., seen] = found[..., (self.sources[seen] - first).to(found.device)].to(kept)
        self.blocks.append(kept)
        return super().sum_heads(weights, contributions, gradient, value)


def head_features(
    facts: ModelFacts,
    text: ExplainedSequences,
    config: GradELLMConfig,
    sources: Tensor,
    cache: Any,
    wanted: Mapping[str, Feature] = FEATURES,
) -> dict[str, Tensor]:
    """Features of every head, `[L, H, N, K]` each: by default contributions `relu(A <g, v>)`, magnitudes `A ||g|| ||v||`.

    Args:
        text: One row.
        config: What is explained.
        sources: Positions, ascending, `[K]`.
        cache: Keys and values of the first `P - 1` positions, which this call may change. None: they are computed.
        wanted: The features, by name.
    """
    chunks: dict[int, dict[int, list[Tensor]]] = defaultdict(dict)  # by layer and first step: a chunk may be tried again

    def watch(formula: HeadFormula, layer: int, first: int, end: int) -> HeadFormula:
        blocks = chunks[layer][first] = []
        return _WatchedFormula(formula.spatial, features=wanted.values(), blocks=blocks, sources=sources, end=end)

    layers = list(range(len(facts.attention)))
    explain(facts, text, config, layers, cache, watch)
    features = torch.zeros(len(wanted), len(layers), facts.num_heads, text.num_steps, len(sources))
    for layer, by_step in chunks.items():
        found = torch.cat([block for _, blocks in sorted(by_step.items()) for block in blocks], dim=2)
        features[:, layer, : found.shape[1]] = found
    return dict(zip(wanted, features))
