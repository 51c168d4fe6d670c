"""What each head contributes to a heatmap: the features that are weighted, before they are added up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..architecture.facts import ModelFacts
from ..configuration import GradELLMConfig
from ..engines.blocks import Block
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
    """Keeps the features of every head when it adds up the heads of a block.

    Args:
        features: What is kept.
        kept: Where, `[F, H, n, K]` for the `n` queries of the chunk.
        sources: Positions, `[K]`.
        end: The number of positions that the last query sees; its own key is the last of them.
    """

    features: Any = None
    kept: Any = None
    sources: Any = None
    end: int = 0

    def sum_heads(
        self, weights: Tensor, contributions: Tensor, gradient: Tensor, value: Tensor, block: Block | None = None
    ) -> Tensor:
        of_heads = (feature(weights, contributions, gradient, value) for feature in self.features)
        found = torch.stack([feature[0].flatten(0, 1) for feature in of_heads])
        heads = block.heads(weights.shape[2]) if block else slice(0, found.shape[1])
        queries = block.queries if block else slice(0, found.shape[2])
        end = self.end - self.kept.shape[2] + queries.stop
        first = end - found.shape[-1]
        seen = (self.sources >= first) & (self.sources < end)
        self.kept[:, heads, queries, seen] = found[..., (self.sources[seen] - first).to(found.device)].to(self.kept)
        return super().sum_heads(weights, contributions, gradient, value, block)


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
    layers = list(range(len(facts.attention)))
    features = torch.zeros(len(wanted), len(layers), facts.num_heads, text.num_steps, len(sources))

    def watch(formula: HeadFormula, layer: int, first: int, end: int) -> HeadFormula:
        kept = features[:, layer, :, first : end - text.prompt_length + 1]
        return _WatchedFormula(formula.spatial, features=wanted.values(), kept=kept, sources=sources, end=end)

    explain(facts, text, config, layers, cache, watch)
    return dict(zip(wanted, features))
