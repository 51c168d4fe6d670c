"""The check that the replay engine is exact for a model, made once before it is used."""

from typing import Any

import torch
from torch import Tensor

from ..architecture.caches import fork_cache, is_plain
from ..architecture.compat import cache_of
from ..architecture.facts import ModelFacts
from ..architecture.support import not_finite
from ..architecture.tensor_parallel import first_reason
from ..architecture.tolerances import REPLAYED_LOGITS, logits_difference
from ..configuration import GradELLMConfig
from ..errors import UnsupportedArchitectureError
from ..sequences.explained import ExplainedSequences
from .replay import replay

_STEPS = 3  # the fewest in which a leak of information shows that skips a token; with one step there is nothing to see


def why_not_replay(facts: ModelFacts, sequences: ExplainedSequences, cache: Any) -> str | None:
    """Why replaying this model is not exact; None if it is exact. Found once per model, and remembered while its modules and
    hooks stay the same.

    Replays the first steps (of the first row, if the cache can be cut) and checks two things. The logits must be those that
    the model gives one token at a time. And the last step's logits must have a gradient of exactly zero at earlier positions.
    If they have not, something other than attention carries information from token to token, and position-local gradients
    are wrong.

    Args:
        cache: Keys and values of the first `P - 1` positions, left unchanged. None: they are computed if needed.
    """
    model = facts.model
    if not facts.calls_interface:
        return "it does not look up its attention function in Transformers' AttentionInterface"
    if not facts.keeps_cache:
        return "it keeps no cache of keys and values from call to call"
    if _rope_depends_on_length(model, sequences.length):
        return "its rotary position embedding depends on the length of a call, so several tokens at once are not what it wrote"
    verdicts = facts.findings.verdicts
    key = (model.config._attn_implementation, model.dtype)
    if key not in verdicts:
        steps = min(_STEPS, sequences.num_steps)
        if steps < 2:
            return None  # a single step is ordinary autograd; the check waits for a longer generation
        try:
            if cache is None:
                cache = sequences.prefill(facts)
            rows = 1 if cache is None or is_plain(cache) else sequences.token_ids.shape[0]
            reason = _check(facts, sequences.head(rows, steps), cache)
            verdicts[key] = first_reason(reason, facts.sharing_groups)
        except UnsupportedArchitectureError as error:  # not remembered: it may be of this text, or of this configuration
            return f"it cannot be replayed ({error})"
    return verdicts[key]


def _rope_depends_on_length(model: Any, length: int) -> bool:
    """Whether a sequence is long enough for a dynamic rotary embedding to change its frequencies."""
    config = model.config.get_text_config(decoder=True)
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *parameters.values()):  # one for all layers, or one per kind of layer
        if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
            limit: int = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            return length > limit
    return False


def _check(facts: ModelFacts, sequences: ExplainedSequences, cache: Any) -> str | None:
    model, rows = facts.model, sequences.token_ids.shape[0]
    start, steps = sequences.prompt_length - 1, sequences.num_steps
    reference, step_cache = [], fork_cache(cache, rows)
    with torch.no_grad():
        for position in range(start, start + steps):
            outputs = sequences.forward(facts, position, position + 1, step_cache)
            step_cache = cache_of(outputs)
            reference.append(outputs.logits)
    expected = torch.cat(reference, dim=1)
    replayed: list[Tensor] = []

    def last_logit(logits: Tensor, token_ids: Tensor) -> Tensor:
        if sum(chunk.shape[1] for chunk in replayed) == steps:
            replayed.pop()  # it did not fit into memory, and comes again in halves
        first = sum(chunk.shape[1] for chunk in replayed)  # above 0 in a second chunk: a prompt of embeddings ends in one
        replayed.append(logits.detach())
        chosen = logits.gather(-1, token_ids[..., None])[..., 0]
        return chosen * (torch.arange(first, first + logits.shape[1], device=logits.device) == steps - 1)

    options: dict[str, Any] = {"positive_only": False, "output_layer_attributions": True, "step_chunk_size": steps}
    config = GradELLMConfig(target=last_logit, **options)
    layers = list(range(len(facts.attention)))
    heatmaps = replay(facts, sequences, config, layers, fork_cache(cache, rows))
    if not (expected < torch.inf).all():  # minus infinity is a token that the model never writes
        raise not_finite(model, GradELLMConfig())
    difference = logits_difference(torch.cat(replayed, dim=1), expected)
    if not difference <= REPLAYED_LOGITS.of(model.dtype, quantized=facts.is_quantized):
        return (
            f"replaying several tokens at once changes its logits by {difference:.1e} of their size, against running one at "
            "a time"
        )
    leaking = heatmaps.kept_layer_attributions[:, :, :-1].transpose(0, 1).flatten(1).any(1).nonzero().flatten().tolist()
    if leaking:
        return f"something besides attention carries information between tokens at or above its layers {leaking}"
    return None
