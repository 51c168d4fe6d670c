"""What each head contributes to a heatmap: the features that are weighted, before they are added up."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..architecture.facts import ModelFacts
from ..configuration import GradELLMConfig
from ..engines.explain import explain
from ..engines.formula import HeadFormula, magnitudes
from ..sequences.explained import ExplainedSequences

FEATURES = ("contribution", "magnitude")


@dataclass(frozen=True)
class _WatchedFormula(HeadFormula):
    """Keeps both features of every head, `[2, H, n, K]`, whenever it adds up the heads of a block of queries.

    Args:
        blocks: Where they are kept, in the order of the queries.
        sources: Positions, `[K]`.
        end: The number of positions that the last query of the chunk sees; the last key is the last of them.
    """

    blocks: Any = None
    sources: Any = None
    end: int = 0

    def sum_heads(self, weights: Tensor, contributions: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        both = torch.stack([contributions.relu(), magnitudes(weights, gradient, value)])[:, 0].flatten(1, 2)
        first = self.end - both.shape[-1]
        seen = (self.sources >= first) & (self.sources < self.end)
        kept = torch.zeros(*both.shape[:-1], len(self.sources))
        kept[..., seen] = both[..., (self.sources[seen] - first).to(both.device)].to(kept)
        self.blocks.append(kept)
        return super().sum_heads(weights, contributions, gradient, value)


def head_features(
    facts: ModelFacts, text: ExplainedSequences, config: GradELLMConfig, sources: Tensor, cache: Any
) -> dict[str, Tensor]:
    """Both features of every head, `[L, H, N, K]` each: contributions `relu(A <g, v>)` and magnitudes `A ||g|| ||v||`.

    Args:
        text: One row.
        config: What is explained.
        sources: Positions, ascending, `[K]`.
        cache: Keys and values of the first `P - 1` positions, which this call may change. None: they are computed.
    """
    chunks: dict[int, dict[int, list[Tensor]]] = defaultdict(dict)  # by layer and first step: a chunk may be tried again

    def watch(formula: HeadFormula, layer: int, first: int, end: int) -> HeadFormula:
        blocks = chunks[layer][first] = []
        return _WatchedFormula(formula.spatial, blocks=blocks, sources=sources, end=end)

    layers = list(range(len(facts.attention)))
    explain(facts, text, config, layers, cache, watch)
    features = torch.zeros(len(FEATURES), len(layers), facts.num_heads, text.num_steps, len(sources))
    for layer, by_step in chunks.items():
        found = torch.cat([block for _, blocks in sorted(by_step.items()) for block in blocks], dim=2)
        features[:, layer, : found.shape[1]] = found
    return dict(zip(FEATURES, features))
