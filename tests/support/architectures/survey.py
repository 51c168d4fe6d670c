"""One type against the reference: what each engine gives, and what a user gets by default."""

import functools
import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradellm_hf import GradELLMConfig, GradELLMWarning, UnsupportedArchitectureError, explain_sequences
from tests.support.versions import IS_NEWEST, chosen_attention

from .lifted_precision import lifted_precision
from .step_reference import KeysAreNotTokensError, record_attention, reference_heatmaps
from .tiny_configs import SPECIAL_TOKENS, VOCABULARY, tiny_config, tiny_model

PROMPT, STEPS, ROWS = 9, 4, 2
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Outcome:
    """What explaining a type gives.

    Attributes:
        engine: The engine that explained it, "refused", or "failed" where something else than a refusal was raised.
        error: `max |explained - reference| / max |reference|` over all layers, or None.
        note: Why it was refused, failed, or explained by another engine than asked for.
    """

    engine: str
    error: float | None = None
    note: str = ""

    @property
    def exact(self) -> bool:
        return self.error is not None and self.error <= TOLERANCE


def random_ids(rows: int = ROWS, length: int = PROMPT + STEPS) -> Tensor:
    """Token ids without special ones, `[rows, length]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(SPECIAL_TOKENS), VOCABULARY, (rows, length), generator=generator)


@functools.cache
def model_of(model_type: str) -> PreTrainedModel:
    """The type's tiny model with the attention that Transformers chooses for it."""
    return tiny_model(model_type, chosen_attention(tiny_config(model_type)))


@functools.cache
def why_not_run(model_type: str) -> str | None:
    """Why the type's tiny model does not run with this version of Transformers, without the package; None where it does."""
    if IS_NEWEST:
        return None
    try:
        if not is_causal(model_type):
            # in doge before 5.24, sdpa reads a prompt in both directions, against eager attention
            return "its attention under sdpa is not causal" if model_type == "doge" else None
        if has_attention(model_type):
            keys_are_tokens(model_type)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def is_causal(model_type: str) -> bool:
    """Whether a later token leaves the logits of the earlier ones alone in a model as its default configuration makes it."""
    token_ids = random_ids(1, PROMPT)
    changed = token_ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    try:
        model = model_of(model_type)
    except AssertionError as error:  # how a model says that it wants `is_decoder`
        if "is_decoder" in str(error):
            return False
        raise
    with torch.no_grad(), lifted_precision():
        before, after = (model(input_ids=ids).logits[:, :-1] for ids in (token_ids, changed))
    return torch.allclose(before, after, rtol=0, atol=1e-9)


@functools.cache
def keys_are_tokens(model_type: str) -> bool:
    """Whether every key of every layer stands for one token."""
    try:
        truth_of(model_type)
    except KeysAreNotTokensError:
        return False
    return True


@functools.cache
def truth_of(model_type: str) -> Tensor:
    """The reference: step by step on a cache, or from full forward passes where the model has none. `[R, L, N, S]`."""
    model = tiny_model(model_type, "eager")
    try:
        return reference_heatmaps(model, random_ids(), PROMPT)
    except NotImplementedError:
        return reference_heatmaps(model, random_ids(), PROMPT, cached=False)


@functools.cache
def has_attention(model_type: str) -> bool:
    """Whether the model weighs anything with a softmax over tokens."""
    with torch.no_grad(), lifted_precision(), record_attention(1) as calls:
        tiny_model(model_type, "eager")(input_ids=random_ids(1, PROMPT))
    return bool(calls)


def explain(model_type: str, **options: Any) -> Outcome:
    """Explains the type's tiny model with the given options of `GradELLMConfig` and compares all layers."""
    config = GradELLMConfig(positive_only=False, output_layer_attributions=True, **options)
    with warnings.catch_warnings(record=True) as caught, lifted_precision():
        warnings.simplefilter("always")
        try:
            out = explain_sequences(model_of(model_type), random_ids(), PROMPT, explain_config=config)
        except UnsupportedArchitectureError as error:
            return Outcome("refused", note=str(error))
        except Exception as error:
            return Outcome("failed", note=f"{type(error).__name__}: {error}")
    note = " ".join(str(warning.message) for warning in caught if issubclass(warning.category, GradELLMWarning))
    if not keys_are_tokens(model_type):
        return Outcome("failed", note="explained, although its keys do not stand for one token each")
    engine = re.search(r"with the (\S+) engine", note)
    return Outcome(engine[1] if engine else config.engine, relative_error(out.layer_attributions, truth_of(model_type)), note)


@functools.cache
def default_outcome(model_type: str) -> Outcome:
    return explain(model_type)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Infinite where the layers are not the same number."""
    if actual.shape != expected.shape or not actual.isfinite().all():
        return float("inf")
    return ((actual - expected).abs().max() / expected.abs().max()).item()
