"""Which engine explains: the replay engine if it is exact for the model, else the stepwise engine."""

import warnings
from typing import Any

from ..architecture.caches import is_plain
from ..architecture.facts import ModelFacts
from ..architecture.running import explainable
from ..architecture.support import not_finite
from ..architecture.tensor_parallel import check_same_text
from ..configuration import GradELLMConfig
from ..errors import GradELLMWarning
from ..sequences.explained import ExplainedSequences
from ..sequences.written_logits import LogitsDifferError
from .heatmap_sums import Heatmaps
from .loop import Watch
from .replay import replay
from .self_check import why_not_replay
from .stepwise import stepwise_as_written


def explain(
    facts: ModelFacts,
    sequences: ExplainedSequences,
    config: GradELLMConfig,
    layers: list[int],
    cache: Any = None,
    watch: Watch | None = None,
) -> Heatmaps:
    """Explains sequences with the engine that the configuration names, or with the stepwise one if replaying is not exact.

    Args:
        layers: Explained layers, ascending.
        cache: Keys and values of the first `P - 1` positions, which this call may change. None: they are computed if needed.
        watch: As for `explain_steps`.

    Raises:
        InvalidInputError: The model produces NaN, or the processes that share it have different texts.
        UnsupportedArchitectureError: The model cannot be explained exactly.
        LogitsDifferError: The logits are not those of the generation.
    """
    model = facts.model
    if not sequences.explained_steps:
        return Heatmaps.empty(sequences, config, layers, model.dtype)
    check_same_text(model, sequences.token_ids, sequences.prompt_length, sequences.num_steps)
    with explainable(model, padded=sequences.attention_mask is not None):
        if cache is None and config.channel == "heads":
            cache = sequences.prefill(facts)
        reason = why_not_replay(facts, sequences, cache) if config.engine == "replay" else None
        heatmaps = None
        if config.engine == "replay" and reason is None:
            try:
                heatmaps = replay(facts, sequences, config, layers, cache, watch)
            except LogitsDifferError as error:
                difference = f"the logits of new token {error.step} by {error.difference:.1e} of their size"
                reason = f"replaying several tokens at once changes {difference}, against those in `generate`"
                cache = cache if is_plain(cache) else None  # any other cache has been written to
        if reason is not None:
            warnings.warn(
                f"`{model.config.model_type}` is explained with the stepwise engine, which is exact but slow: {reason}.",
                GradELLMWarning,
                stacklevel=3,
            )
        if heatmaps is None:
            heatmaps = stepwise_as_written(facts, sequences, config, layers, cache, watch)
    if not heatmaps.are_finite:
        raise not_finite(model, config)
    return heatmaps
