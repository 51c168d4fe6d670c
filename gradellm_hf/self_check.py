"""Before the replay engine is trusted with a model, it proves itself on it once."""

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .architecture import attention_layers, calls_attention_interface, not_finite
from .caches import fork_cache, is_plain
from .configuration import GradELLMConfig
from .errors import InvalidInputError
from .quantization import is_quantized
from .replay import replay
from .sequences import ExplainedSequences
from .tensor_parallel import first_reason, tensor_parallel_group
from .tolerances import logits_difference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STEPS = 3
_TOLERANCES = {torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest logit; elsewhere 1e-3
_QUANTIZED_TOLERANCE = 2e-1
_verdicts: "weakref.WeakKeyDictionary[nn.Module, dict[Any, str | None]]" = weakref.WeakKeyDictionary()


def why_not_replay(model: "PreTrainedModel", sequences: ExplainedSequences, cache: Any) -> str | None:
    """Why replaying this model is not exact, or None where it is. Found once a model object, and remembered.

    Replays the first steps (of the first row, where the cache can be cut) and checks two things. The logits must be
    those of the model when it runs one token at a time. And the last step's logits must have exactly zero gradient at
    earlier positions: where they do not, something other than attention carries information from token to token, and
    position-local gradients are not the truth.

    Args:
        cache: Keys and values of the first `P - 1` positions, left unchanged; None: they are computed where needed.
    """
    if not calls_attention_interface(model):
        return "it does not look up its attention function in Transformers' AttentionInterface"
    if _rope_depends_on_length(model, sequences.length):
        return "its rotary position embedding depends on the length of a call, so several tokens at once are not what it wrote"
    verdicts = _verdicts.setdefault(model, {})
    key = (model.config._attn_implementation, model.dtype)
    if key not in verdicts:
        steps = min(_STEPS, sequences.num_steps)
        if steps < 2:
            return None  # a single step is ordinary autograd; the check waits for a longer generation
        try:
            if cache is None:
                cache = sequences.prefill(model)
            rows = 1 if cache is None or is_plain(cache) else sequences.token_ids.shape[0]
            reason = _check(model, sequences.head(rows, steps), cache)
            verdicts[key] = first_reason(reason, tensor_parallel_group(model))
        except (InvalidInputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a model does when it sees several tokens at once on a cache; not remembered
            return f"it cannot be replayed ({type(error).__name__}: {error})"
    return verdicts[key]


def _rope_depends_on_length(model: "PreTrainedModel", length: int) -> bool:
    """Whether a sequence is long enough for a dynamic rotary embedding to change its frequencies."""
    config = model.config.get_text_config(decoder=True)
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *parameters.values()):  # one for all layers, or one a kind of layer
        if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
            return length > (rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return False


def _check(model: "PreTrainedModel", sequences: ExplainedSequences, cache: Any) -> str | None:
    rows = sequences.token_ids.shape[0]
    start, steps = sequences.prompt_length - 1, sequences.num_steps
    reference, step_cache = [], fork_cache(cache, rows)
    with torch.no_grad():
        for position in range(start, start + steps):
            outputs = sequences.forward(model, position, position + 1, step_cache)
            step_cache = outputs.cache
            reference.append(outputs.logits)
    expected = torch.cat(reference, dim=1)
    replayed: list[Tensor] = []

    def last_logit(logits: Tensor, token_ids: Tensor) -> Tensor:
        first = sum(chunk.shape[1] for chunk in replayed)  # more than one chunk where the prompt ends in an embedding
        replayed.append(logits.detach())
        chosen = logits.gather(-1, token_ids[..., None])[..., 0]
        return chosen * (torch.arange(first, first + logits.shape[1], device=logits.device) == steps - 1)

    config = GradELLMConfig(target=last_logit, positive_only=False, output_layer_attributions=True)
    layers = list(range(len(attention_layers(model))))
    heatmaps = replay(model, sequences, config, layers, fork_cache(cache, rows))
    if not (expected < torch.inf).all():  # minus infinity is a token that the model never writes
        raise not_finite(model, GradELLMConfig())
    difference = logits_difference(torch.cat(replayed, dim=1), expected)
    if not difference <= (_QUANTIZED_TOLERANCE if is_quantized(model) else _TOLERANCES.get(model.dtype, 1e-3)):
        return (
            f"replaying several tokens at once changes its logits by {difference:.1e} of their size, against running one at "
            "a time"
        )
    assert heatmaps.layer_attributions is not None
    leaking = heatmaps.layer_attributions[:, :, :-1].transpose(0, 1).flatten(1).any(1).nonzero().flatten().tolist()
    if leaking:
        return f"something besides attention carries information between tokens at or above its layers {leaking}"
    return None
