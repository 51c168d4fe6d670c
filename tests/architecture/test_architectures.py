"""Every decoder-only text type that the installed Transformers registers: explained exactly or refused, not silently wrong."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from gradellm_hf import GradELLMConfig, UnsupportedArchitectureError, explain_sequences
from tests.support.architectures.lifted_precision import lifted_precision
from tests.support.architectures.registered_types import decoder_only_types
from tests.support.architectures.step_reference import reference_heatmaps
from tests.support.architectures.survey import (
    PROMPT,
    default_outcome,
    has_attention,
    is_causal,
    keys_are_tokens,
    model_of,
    random_ids,
    relative_error,
    truth_of,
    why_not_run,
)
from tests.support.architectures.tiny_configs import tiny_model
from tests.support.reference import reference_heatmaps as full_prefix_heatmaps
from tests.support.versions import IS_NEWEST

TYPES = decoder_only_types()

#: One type for each way in which padding can reach attention.
PADDED = (
    "gpt2",  # learned positions
    "gpt_neo",  # no attention interface
    "bloom",  # ALiBi from the mask
    "falcon",  # a fused mask
    "mistral",  # a window
    "gemma2",  # windows in some layers, soft-capping
    "deepseek_v3",  # values narrower than keys
    "gpt_oss",  # sinks
    "granitemoe",  # arguments that the signature hides
    "bamba",  # a recurrence beside attention
    "lfm2",  # a convolution beside attention
)

#: Kinds of attention and of caches.
KINDS = {"llama", "bloom", "mistral", "gpt_oss", "diffllama", "lfm2", "mpt", "granite_swa"}


@pytest.mark.parametrize("model_type", TYPES)
def test_a_registered_type_is_explained_exactly_or_refused(model_type):
    if (why := why_not_run(model_type)) is not None:
        pytest.skip(f"{model_type} does not run with Transformers {transformers.__version__}: {why}")
    outcome = default_outcome(model_type)
    if not (is_causal(model_type) and has_attention(model_type) and keys_are_tokens(model_type)):
        assert outcome.engine == "refused", outcome
        assert f"`{model_type}`" in outcome.note
    else:
        assert outcome.exact or outcome.engine == "refused", outcome


def test_all_but_four_types_with_softmax_attention_are_explained_exactly():
    """All but five of earlier versions, in which fewer classes look up their attention function."""
    running = [model_type for model_type in TYPES if why_not_run(model_type) is None]
    types = [model_type for model_type in running if is_causal(model_type) and has_attention(model_type)]
    inexact = {model_type: default_outcome(model_type) for model_type in types if not default_outcome(model_type).exact}
    assert len(types) >= (137 if IS_NEWEST else 90)
    assert len(inexact) <= (4 if IS_NEWEST else 5), inexact


@pytest.mark.parametrize("model_type", sorted(KINDS.intersection(TYPES)))
def test_the_reference_is_the_same_on_a_cache_and_without(model_type):
    full = reference_heatmaps(tiny_model(model_type, "eager"), random_ids(), PROMPT, cached=False)
    assert relative_error(full, truth_of(model_type)) < 1e-12


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gpt2"])
def test_the_reference_agrees_with_the_one_that_the_engines_are_tested_against(model_type):
    with lifted_precision():
        expected = full_prefix_heatmaps(model_of(model_type), random_ids(), PROMPT)
    assert relative_error(truth_of(model_type), expected) < 1e-12


@pytest.mark.filterwarnings("ignore::gradellm_hf.GradELLMWarning")
@pytest.mark.parametrize("model_type", PADDED)
def test_a_left_padded_row_is_explained_as_if_it_were_alone(model_type):
    padding = 4
    token_ids = random_ids()
    token_ids[1, :padding] = 0
    mask = torch.ones_like(token_ids)
    mask[1, :padding] = 0
    config = GradELLMConfig(positive_only=False, output_layer_attributions=True)
    with lifted_precision():
        batch = explain_sequences(model_of(model_type), token_ids, PROMPT, mask, explain_config=config)
        alone = explain_sequences(model_of(model_type), token_ids[1:, padding:], PROMPT - padding, explain_config=config)
    assert not batch.layer_attributions[1, ..., :padding].any()
    assert relative_error(batch.layer_attributions[1:, ..., padding:], alone.layer_attributions) < 1e-9
    assert relative_error(batch.layer_attributions[:1], truth_of(model_type)[:1]) < 1e-9


def test_an_encoder_decoder_model_is_refused_by_name():
    config = AutoConfig.for_model("t5", vocab_size=97, d_model=16, d_kv=4, d_ff=20, num_layers=1, num_heads=2)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(UnsupportedArchitectureError, match="`t5` is an encoder-decoder"):
        explain_sequences(model, random_ids(), PROMPT)
