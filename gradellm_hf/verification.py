"""`verify`: compares both engines on a short input, to check a new or custom architecture."""

from typing import Any

import torch

from .architecture.caches import fork_cache
from .architecture.facts import explained_layers, look_at
from .architecture.running import explainable
from .architecture.support import not_finite
from .architecture.tolerances import relative_difference
from .checks.arguments import whole_number
from .configuration import GradELLMConfig
from .engines.replay import replay
from .engines.stepwise import stepwise
from .errors import UnsupportedArchitectureError
from .sequences.explained import ExplainedSequences
from .sequences.positions import PositionRoom


def verify(model: Any, *, prompt_length: int = 12, num_steps: int = 6, seed: int = 0) -> float:
    """The largest error of the replay engine against the stepwise engine, over all layers of a random token sequence.

    Rounding gives about 1e-5 in float32, and 1e-2 in bfloat16. Much more means that something in the model besides attention
    carries information between tokens. Then use `GradELLMConfig(engine="stepwise")`, as `explain_generate` does by itself.

    Args:
        model: As for `explain_generate`.
        prompt_length: `P` of the input.
        num_steps: `N` of the input.
        seed: Of its random tokens.

    Returns:
        `max |replay - stepwise| / max |stepwise|` over the signed heatmaps of all layers; 0 if both are 0 throughout.

    Raises:
        InvalidInputError: An argument or the state of the model is not usable, or the model produces NaN.
        UnsupportedArchitectureError: The model cannot be explained exactly, or only by the stepwise engine.

    Examples:
        >>> verify(model) < 1e-4
        True
    """
    prompt_length, num_steps = whole_number("prompt_length", prompt_length, 1), whole_number("num_steps", num_steps, 1)
    seed = whole_number("seed", seed, 0, 2**63 - 1)
    facts = look_at(model)
    inner = facts.model
    config = GradELLMConfig(positive_only=False, output_layer_attributions=True)
    layers = explained_layers(facts, config)
    if not facts.calls_interface:
        raise UnsupportedArchitectureError(
            f"`{facts.model_type}` does not call Transformers' AttentionInterface: it is explained with the stepwise "
            "engine only, and there is nothing to compare that with."
        )
    PositionRoom(facts, prompt_length).check(num_steps)
    length = prompt_length + num_steps
    generator = torch.Generator().manual_seed(seed)
    with explainable(inner):
        tokens = torch.randint(facts.vocabulary_size, (1, length), generator=generator, device="cpu").to(facts.input_device)
        sequences = ExplainedSequences(
            token_ids=tokens,
            prompt_length=prompt_length,
            num_steps=num_steps,
            per_position={"position_ids": torch.arange(length, device=tokens.device)[None]},
            step_mask=torch.ones(1, num_steps, dtype=torch.bool, device=tokens.device),
        )
        cache = sequences.prefill(facts)
        both = [stepwise(facts, sequences, config, layers, fork_cache(cache)), replay(facts, sequences, config, layers, cache)]
    if not all(heatmaps.are_finite for heatmaps in both):
        raise not_finite(inner, config)
    expected, replayed = (heatmaps.kept_layer_attributions for heatmaps in both)
    return relative_difference(replayed, expected)
