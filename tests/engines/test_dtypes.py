"""Number formats and grad modes: scores are float32 and finite, and weights never get gradients."""

import pytest
import torch

from gradellm_hf import GradELLMConfig, explain_generate, explain_sequences
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, random_ids, small_llama

# Share of the largest score by which rounding may move one: a few units of the format's precision, 2**-8 and 2**-11.
HALF_PRECISION = {torch.bfloat16: 0.1, torch.float16: 0.02}


@pytest.fixture(scope="module")
def llama():
    return small_llama()


def gentle_llama(dtype):
    """Weights of ordinary size, rounded to bfloat16, so that all formats hold the same model."""
    model = small_llama().bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 0.5
    return model.to(dtype)


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize("target", ["logit", "probability", "log_probability"])
def test_half_precision_gives_nearly_the_scores_of_float32(dtype, target):
    config = GradELLMConfig(target=target)
    prompts = padded_prompts((14, 9, 5))
    sequences = torch.cat([prompts["input_ids"], random_ids(3, 6, seed=1)], dim=1)
    expected = explain_sequences(gentle_llama(torch.float32), sequences, 14, prompts["attention_mask"], explain_config=config)
    out = explain_sequences(gentle_llama(dtype), sequences, 14, prompts["attention_mask"], explain_config=config)
    for name in ("attributions", "target_scores", "token_probabilities"):
        assert out[name].dtype == torch.float32
        assert out[name].isfinite().all()
    for row in range(3):
        for step in range(6):
            assert_same_heatmaps(out.attributions[row, step], expected.attributions[row, step], HALF_PRECISION[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_PRECISION])
@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_generation_in_every_format_is_explained_in_float32(dtype, engine):
    model, prompts = gentle_llama(dtype), padded_prompts()
    out = explain_generate(model, **prompts, max_new_tokens=5, explain_config=GradELLMConfig(engine=engine))
    assert torch.equal(out.sequences, model.generate(**prompts, max_new_tokens=5))
    assert out.attributions.dtype == out.target_scores.dtype == out.token_probabilities.dtype == torch.float32
    assert out.attributions.isfinite().all()
    assert (out.attributions.sum(-1) > 0).all()


def test_a_tiny_probability_in_float16_still_has_a_heatmap():
    ids = random_ids(1, 8)
    worst = gentle_llama(torch.float32)(ids).logits[0, -1].argmin()
    sequences = torch.cat([ids, worst.view(1, 1), ids[:, :1]], dim=1)
    config = GradELLMConfig(target="probability")
    expected = explain_sequences(gentle_llama(torch.float32), sequences, 8, explain_config=config)
    out = explain_sequences(gentle_llama(torch.float16), sequences, 8, explain_config=config)
    assert expected.token_probabilities[0, 0] < 1e-3
    assert_same_heatmaps(out.attributions[:, 0], expected.attributions[:, 0], 0.05)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("engine", ["replay", "stepwise"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_grad_mode_around_the_call_does_not_matter(llama, mode, engine, options):
    prompts, config = padded_prompts(), GradELLMConfig(engine=engine)
    expected = explain_generate(llama, **prompts, max_new_tokens=5, explain_config=config, **options)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        out = explain_generate(llama, **prompts, max_new_tokens=5, explain_config=config, **options)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.equal(out.sequences, expected.sequences)
    assert_same_heatmaps(out.attributions, expected.attributions, 1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("config", [GradELLMConfig(), GradELLMConfig(spatial="loosened", layers=[1, -1])])
def test_grad_mode_around_existing_text_does_not_matter(llama, mode, config):
    prompts = padded_prompts()
    expected = explain_sequences(llama, prompts["input_ids"], 8, prompts["attention_mask"], explain_config=config)
    with mode():
        inside = {name: x.clone() for name, x in prompts.items()}  # inference tensors, in inference mode
        out = explain_sequences(llama, inside["input_ids"], 8, inside["attention_mask"], explain_config=config)
    assert_same_heatmaps(out.attributions, expected.attributions, 1e-6)


def test_prompt_embeddings_made_in_inference_mode_are_explained(llama):
    ids = random_ids(2, 7)
    expected = explain_generate(llama, ids, max_new_tokens=5)
    with torch.inference_mode():
        out = explain_generate(llama, inputs_embeds=llama.get_input_embeddings()(ids), max_new_tokens=5)
    assert_same_heatmaps(out.attributions, expected.attributions)


def test_prompt_embeddings_that_require_grad_get_none(llama):
    embeds = llama.get_input_embeddings()(random_ids(2, 7)).detach().requires_grad_()
    out = explain_generate(llama, inputs_embeds=embeds, max_new_tokens=5)
    assert embeds.grad is None
    assert embeds.requires_grad
    assert not out.attributions.requires_grad


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
@pytest.mark.parametrize("trainable", [True, False])
def test_weights_never_get_gradients(engine, trainable):
    model = small_llama().requires_grad_(trainable)
    config = GradELLMConfig(engine=engine)
    out = explain_generate(model, random_ids(2, 7), max_new_tokens=5, explain_config=config)
    assert all(parameter.grad is None and parameter.requires_grad == trainable for parameter in model.parameters())
    assert out.attributions.sum() > 0
    assert not any(value.requires_grad for value in out.values() if isinstance(value, torch.Tensor))


def test_gradients_that_the_weights_already_have_are_kept():
    model = small_llama()
    model(random_ids(1, 5)).logits.sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    explain_generate(model, random_ids(2, 7), max_new_tokens=5)
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in model.named_parameters())
