"""Both engines against per-step autograd over the full prefix, in float64."""

import functools

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradellm_hf import GradELLMConfig, HeadWeights, explain_generate, explain_sequences, verify
from tests.support.reference import reference_heatmaps
from tests.support.tiny_models import WINDOW, float64_islands, random_text, tiny_model

pytestmark = pytest.mark.slow

PROMPT, STEPS = 11, 6
FAMILIES = (
    "llama",
    "mistral",
    "mistral_windowed",
    "qwen2",
    "qwen2_windowed",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "gpt2",
    "olmo2",
)
ENGINES = ("replay", "stepwise")


@functools.cache
def model_of(family: str) -> PreTrainedModel:
    return tiny_model(family)


@functools.cache
def text_of(family: str) -> tuple[Tensor, Tensor | None]:
    return random_text(model_of(family), 3, PROMPT, STEPS, padding=[0, 3, 7])


@functools.cache
def truth_of(family: str, spatial: str) -> Tensor:
    token_ids, padding = text_of(family)
    with float64_islands():
        return reference_heatmaps(model_of(family), token_ids, PROMPT, padding, spatial=spatial)


def explain(model: PreTrainedModel, token_ids: Tensor, prompt_length: int, padding: Tensor | None, **options):
    config = GradELLMConfig(output_layer_attributions=True, **options)
    with float64_islands():
        return explain_sequences(model, token_ids, prompt_length, padding, explain_config=config)


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float64
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= 1e-9, f"relative error {error:.1e}"


@pytest.mark.parametrize("spatial", ["attention", "loosened"])
@pytest.mark.parametrize("positive_only", [True, False])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layers", [1, [0, 2], "all"], ids=["last_layer", "some_layers", "all_layers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_engines_agree_with_autograd_over_the_full_prefix_in_a_left_padded_batch(
    family, layers, engine, positive_only, spatial
):
    token_ids, padding = text_of(family)
    truth = truth_of(family, spatial)
    expected = truth[:, [-1] if layers == 1 else layers] if layers != "all" else truth
    if positive_only:
        expected = expected.relu()
    out = explain(
        model_of(family),
        token_ids,
        PROMPT,
        padding,
        layers=layers,
        engine=engine,
        positive_only=positive_only,
        positive_part="layer",
        spatial=spatial,
    )
    assert_exact(out.layer_attributions, expected)
    assert_exact(out.attributions, expected.sum(1))


@pytest.mark.parametrize("spatial", ["attention", "loosened"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["llama", "qwen2_windowed", "gpt2"])
def test_the_positive_parts_of_the_heads_add_up_exactly(family, engine, spatial):
    token_ids, padding = text_of(family)
    with float64_islands():
        expected = reference_heatmaps(model_of(family), token_ids, PROMPT, padding, spatial=spatial, positive_heads=True)
    assert not torch.allclose(expected, truth_of(family, spatial).relu())
    out = explain(model_of(family), token_ids, PROMPT, padding, engine=engine, spatial=spatial)
    assert_exact(out.layer_attributions, expected)
    assert_exact(out.attributions, expected.sum(1))


#: What is weighted, by feature and options.
WEIGHTED = {
    "contribution": ("contribution", {}, {"positive_heads": True}),
    "magnitude": ("magnitude", {}, {"magnitudes": True}),
    "contribution, signed": ("contribution", {"positive_only": False}, {}),
    "magnitude, signed": ("magnitude", {"positive_only": False}, {}),
}


@pytest.mark.parametrize(("feature", "options", "truth"), WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["llama", "qwen2_windowed", "gpt2"])
def test_weighted_heads_add_up_exactly(family, engine, feature, options, truth):
    token_ids, padding = text_of(family)
    model = model_of(family)
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    values = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    with float64_islands():
        expected = reference_heatmaps(model, token_ids, PROMPT, padding, head_weights=values, **truth)
    weights = HeadWeights(values, feature, model.config.model_type)
    out = explain(model, token_ids, PROMPT, padding, engine=engine, head_weights=weights, layers=[0, -1], **options)
    assert_exact(out.layer_attributions, expected[:, [0, -1]])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_contrast_has_a_sign_so_weights_of_magnitudes_apply_to_contributions(engine):
    token_ids, padding = text_of("llama")
    weights = HeadWeights(torch.rand(5, 6, generator=torch.Generator().manual_seed(2)), "magnitude", "llama")
    foils = (token_ids[:, PROMPT:] + 1) % 53

    def contrast(logits: Tensor, chosen: Tensor, step: int) -> Tensor:
        return logits.gather(-1, chosen[:, None])[:, 0] - logits.gather(-1, foils[:, step, None])[:, 0]

    with float64_islands():
        expected = reference_heatmaps(
            model_of("llama"),
            token_ids,
            PROMPT,
            padding,
            target=contrast,
            positive_heads=True,
            head_weights=weights.values,
        )
    options = {"target": "contrast", "contrast_token_ids": foils, "head_weights": weights}
    out = explain(model_of("llama"), token_ids, PROMPT, padding, engine=engine, **options)
    assert_exact(out.layer_attributions, expected)


@pytest.mark.parametrize("chunk", [1, 2, 3, STEPS, None])
@pytest.mark.parametrize("family", ["llama", "mistral_windowed", "qwen2_windowed", "gpt2"])
def test_replay_is_exact_whatever_the_number_of_steps_replayed_together(family, chunk):
    token_ids, padding = text_of(family)
    out = explain(model_of(family), token_ids, PROMPT, padding, positive_only=False, step_chunk_size=chunk)
    assert_exact(out.layer_attributions, truth_of(family, "attention"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_one_token_is_explained_exactly(family, engine):
    model = model_of(family)
    token_ids, _ = random_text(model, 2, 1, 7, seed=4)
    with float64_islands():
        expected = reference_heatmaps(model, token_ids, 1)
    out = explain(model, token_ids, 1, None, positive_only=False, engine=engine)
    assert_exact(out.layer_attributions, expected)
    assert torch.equal(out.attributions[:, 0, 1:], torch.zeros(2, 7))  # the first step can see only that token


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["llama", "mistral_windowed", "qwen3_moe", "gpt2"])
def test_a_model_with_eager_attention_is_explained_like_one_with_sdpa(family, engine):
    token_ids, padding = text_of(family)
    model = tiny_model(family, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert model_of(family).config._attn_implementation == "sdpa"
    out = explain(model, token_ids, PROMPT, padding, positive_only=False, engine=engine)
    assert_exact(out.layer_attributions, truth_of(family, "attention"))


@pytest.mark.parametrize("family", ["mistral_windowed", "qwen2_windowed"])
def test_the_window_is_shorter_than_the_prompt_and_makes_a_difference(family):
    token_ids, padding = text_of(family)
    assert WINDOW < PROMPT
    windowed = explain(model_of(family), token_ids, PROMPT, padding, positive_only=False).layer_attributions[:, -1]
    for step in range(STEPS):
        first_visible = PROMPT + step - WINDOW
        assert not windowed[:, step, :first_visible].any()
        assert windowed[:, step, first_visible : PROMPT + step].all()
    full = tiny_model(family, sliding_window=None)
    out = explain(full, token_ids, PROMPT, padding, positive_only=False)
    assert out.layer_attributions[0, -1, :, :PROMPT].all()


@pytest.mark.parametrize(
    ("target", "score"),
    [
        ("probability", lambda logits, chosen, step: logits.softmax(-1).gather(1, chosen[:, None])[:, 0]),
        ("log_probability", lambda logits, chosen, step: logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]),
        (
            lambda logits, ids: logits.square().mean(-1) - logits[..., 3],
            lambda logits, chosen, step: logits.square().mean(-1) - logits[:, 3],
        ),
        ("contrast", lambda logits, chosen, step: logits.gather(1, chosen[:, None])[:, 0] - logits[:, 20 + step]),
    ],
    ids=["probability", "log_probability", "callable", "contrast"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_target_is_differentiated_exactly(target, score, engine):
    model = model_of("qwen3")
    token_ids, padding = text_of("qwen3")
    with float64_islands():
        expected = reference_heatmaps(model, token_ids, PROMPT, padding, target=score)
    foils = torch.arange(20, 20 + STEPS) if target == "contrast" else None
    assert foils is None or not (token_ids[:, PROMPT:] == foils).any()  # there would be nothing to contrast
    out = explain(
        model, token_ids, PROMPT, padding, target=target, contrast_token_ids=foils, positive_only=False, engine=engine
    )
    assert_exact(out.layer_attributions, expected)


def test_target_scores_and_probabilities_are_those_of_a_plain_forward_pass():
    model = model_of("llama")
    token_ids, _ = random_text(model, 2, PROMPT, STEPS)
    out = explain(model, token_ids, PROMPT, None)
    with float64_islands(), torch.no_grad():
        logits = model(token_ids).logits[:, PROMPT - 1 : -1]
    chosen = token_ids[:, PROMPT:, None]
    assert_exact(out.target_scores, logits.gather(-1, chosen)[..., 0])
    assert_exact(out.token_probabilities, logits.softmax(-1).gather(-1, chosen)[..., 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_explaining_a_generation_equals_explaining_its_text_afterwards(family):
    model = tiny_model(family, dtype=torch.float32)
    prompt, padding = random_text(model, 3, PROMPT, 0, padding=[2, 0, 5])
    out = explain_generate(model, prompt, attention_mask=padding, max_new_tokens=STEPS, do_sample=False)
    again = explain_sequences(model, out.sequences, PROMPT, padding)
    assert out.attributions.shape == (3, STEPS, PROMPT + STEPS)
    assert out.attributions.dtype == torch.float32
    torch.testing.assert_close(out.attributions, again.attributions)
    torch.testing.assert_close(out.target_scores, again.target_scores)


def test_explaining_a_generation_in_float64_equals_the_reference_on_what_was_generated():
    model = model_of("mistral_windowed")
    prompt, padding = random_text(model, 3, PROMPT, 0, padding=[2, 0, 5])
    config = GradELLMConfig(positive_only=False, output_layer_attributions=True)
    with float64_islands():
        out = explain_generate(
            model, prompt, explain_config=config, attention_mask=padding, max_new_tokens=STEPS, do_sample=False
        )
        expected = reference_heatmaps(model, out.sequences, PROMPT, padding)
    assert_exact(out.layer_attributions, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_verify_finds_the_engines_equal_to_rounding(family):
    with float64_islands():
        assert verify(model_of(family)) < 1e-12
