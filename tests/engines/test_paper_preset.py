"""The published implementation's definition, transcribed literally in `reference.py`."""

import functools

import pytest
import torch
from torch import Tensor

from gradellm_hf import GradELLMConfig, UnsupportedArchitectureError, explain_generate, explain_sequences
from tests.support.reference import reference_flattened_heatmaps
from tests.support.tiny_models import float64_islands, random_text, tiny_model

PROMPT, STEPS = 9, 5
SQUARE_FAMILIES = ("square_llama", "square_mistral_windowed", "square_qwen3", "qwen2", "qwen2_windowed", "qwen2_moe", "gpt2")


@functools.cache
def case(family: str):
    model = tiny_model(family)
    return model, *random_text(model, 3, PROMPT, STEPS, padding=[0, 2, 5])


@functools.cache
def truth_of(family: str, spatial: str) -> Tensor:
    model, token_ids, padding = case(family)
    with float64_islands():
        return reference_flattened_heatmaps(model, token_ids, PROMPT, padding, spatial=spatial)


def explain(family: str, config: GradELLMConfig):
    model, token_ids, padding = case(family)
    with float64_islands():
        return explain_sequences(model, token_ids, PROMPT, padding, explain_config=config)


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= 1e-9, f"relative error {error:.1e}"


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
@pytest.mark.parametrize("family", SQUARE_FAMILIES)
def test_the_paper_preset_is_the_published_definition(family, engine):
    out = explain(family, GradELLMConfig.paper(engine=engine))
    assert_exact(out.attributions, truth_of(family, "loosened")[:, -1].relu())


@pytest.mark.parametrize("chunk", [1, 2, None])
@pytest.mark.parametrize("spatial", ["loosened", "attention"])
@pytest.mark.parametrize("family", SQUARE_FAMILIES)
def test_the_attention_output_channel_is_exact_in_every_layer_signed_and_in_chunks(family, spatial, chunk):
    config = GradELLMConfig(
        channel="attention_output",
        spatial=spatial,
        positive_only=False,
        output_layer_attributions=True,
        step_chunk_size=chunk,
    )
    out = explain(family, config)
    assert_exact(out.layer_attributions, truth_of(family, spatial))
    assert_exact(out.attributions, truth_of(family, spatial).sum(1))


def test_the_attention_output_channel_is_exact_in_some_layers_only():
    config = GradELLMConfig.paper(layers=[0, 2], positive_only=False, output_layer_attributions=True)
    out = explain("square_llama", config)
    assert_exact(out.layer_attributions, truth_of("square_llama", "loosened")[:, [0, 2]])


def test_the_paper_preset_explains_a_generation_like_its_text_afterwards():
    model = tiny_model("square_qwen3", dtype=torch.float32)
    prompt, padding = random_text(model, 2, PROMPT, 0, padding=[0, 3])
    config = GradELLMConfig.paper()
    out = explain_generate(model, prompt, attention_mask=padding, max_new_tokens=4, do_sample=False, explain_config=config)
    again = explain_sequences(model, out.sequences, PROMPT, padding, explain_config=config)
    torch.testing.assert_close(out.attributions, again.attributions)


def test_the_paper_preset_differs_from_the_default_restricted_to_the_last_layer():
    paper = explain("square_llama", GradELLMConfig.paper()).attributions
    loosened = explain("square_llama", GradELLMConfig(layers=1, spatial="loosened")).attributions
    assert (paper - loosened).abs().max() > 0.1 * loosened.abs().max()


def test_the_paper_preset_needs_heads_that_fill_the_model_width():
    model = tiny_model("llama")
    with pytest.raises(UnsupportedArchitectureError, match=r"H \* D must equal E; `llama` has 6 \* 10 = 60 and 42"):
        explain_sequences(model, torch.arange(7)[None], 4, explain_config=GradELLMConfig.paper())
