"""What each head contributes to a heatmap: the features that are weighted, before they are added up."""

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

FEATURES = ("contribution", "magnitude")


@dataclass(frozen=True)
class _WatchedFormula(HeadFormula):
    """Keeps both features of every head when it adds up the heads of a block.

    Args:
        kept: Where, `[2, H, n, K]` for the `n` queries of the chunk.
        sources: Positions, `[K]`.
        end: The number of positions that the last query sees; its own key is the last of them.
    """

    kept: Any = None
    sources: Any = None
    end: int = 0

    def sum_heads(
        self, weights: Tensor, contributions: Tensor, gradient: Tensor, value: Tensor, block: Block | None = None
    ) -> Tensor:
        both = torch.stack([contributions.relu(), magnitudes(weights, gradient, value)])[:, 0].flatten(1, 2)
        heads = block.heads(weights.shape[2]) if block else slice(0, both.shape[1])
        queries = block.queries if block else slice(0, both.shape[2])
        end = self.end - self.kept.shape[2] + queries.stop
        first = end - both.shape[-1]
        seen = (self.sources >= first) & (self.sources < end)
        self.kept[:, heads, queries, seen] = both[..., (self.sources[seen] - first).to(both.device)].to(self.kept)
        return super().sum_heads(weights, contributions, gradient, value, block)


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
    layers = list(range(len(facts.attention)))
    features = torch.zeros(len(FEATURES), len(layers), facts.num_heads, text.num_steps, len(sources))

    def watch(formula: HeadFormula, layer: int, first: int, end: int) -> HeadFormula:
        kept = features[:, layer, :, first : end - text.prompt_length + 1]
        return _WatchedFormula(formula.spatial, kept=kept, sources=sources, end=end)

    explain(facts, text, config, layers, cache, watch)
    return dict(zip(FEATURES, features))
