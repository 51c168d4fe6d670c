"""Invariants over shapes, paddings, head counts, windows, chunk sizes, row counts and configurations."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from gradellm_hf import ExplainGenerateOutput, GradELLMConfig, HeadWeights, explain_sequences
from tests.support.tiny_models import float64_islands, random_text, tiny_model

pytestmark = pytest.mark.slow

EOS = 3


def some(max_examples: int):
    """Bounded and repeatable, so that the suite takes the same time and finds the same things everywhere."""
    return settings(max_examples=max_examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def models(draw, square: bool = False) -> PreTrainedModel:
    """A model of any family with drawn head counts, widths, depth and window."""
    family = draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "gpt2"]))
    groups, shared = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_dim, layers = 2 * draw(st.integers(1, 4)), draw(st.integers(1, 3))
    heads = groups * shared
    sizes = {
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "num_hidden_layers": layers,
        "hidden_size": heads * head_dim if square or family == "qwen2" else heads * draw(st.integers(2, 6)),
    }
    if family == "gpt2":
        sizes = {"n_head": heads, "n_embd": heads * head_dim, "n_layer": layers}
    elif family == "qwen2":
        del sizes["head_dim"]
    if family == "mistral":
        sizes["sliding_window"] = draw(st.none() | st.integers(2, 12))
    elif family in ("qwen2", "qwen3") and (window := draw(st.none() | st.integers(2, 12))):
        first = draw(st.integers(0, layers))
        kinds = ["full_attention"] * first + ["sliding_attention"] * (layers - first)
        sizes |= {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds}
    return tiny_model(family, seed=draw(st.integers(0, 99)), **sizes)


@st.composite
def texts(draw, model: PreTrainedModel, min_rows: int = 1) -> tuple[Tensor, int, Tensor]:
    """Token ids `[R, S]`, prompt length, and the mask of a left-padded prompt `[R, P]`."""
    rows, prompt_length, steps = draw(st.integers(min_rows, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    padding = draw(st.lists(st.integers(0, prompt_length - 1), min_size=rows, max_size=rows))
    token_ids, mask = random_text(model, rows, prompt_length, steps, padding, seed=draw(st.integers(0, 99)))
    return token_ids, prompt_length, mask


@st.composite
def head_weights(draw, model: PreTrainedModel) -> HeadWeights:
    """Random ones of either feature."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.rand(model.config.num_hidden_layers, model.config.num_attention_heads, generator=generator)
    return HeadWeights(values, draw(st.sampled_from(["contribution", "magnitude"])), model.config.model_type)


@st.composite
def options(draw, model: PreTrainedModel) -> dict:
    """Any configuration of the head channel."""
    depth = model.config.num_hidden_layers
    spatial = draw(st.sampled_from(["attention", "loosened"]))
    return {
        "layers": draw(
            st.just("all") | st.integers(1, depth) | st.lists(st.integers(-depth, depth - 1), min_size=1, max_size=depth)
        ),
        "spatial": spatial,
        "target": draw(st.sampled_from(["logit", "probability", "log_probability"])),
        "positive_only": draw(st.booleans()),
        "positive_part": draw(st.sampled_from(["layer", "head"])),
        "head_weights": draw(st.none() | head_weights(model)) if spatial == "attention" else None,
        "output_layer_attributions": True,
    }


def explain(model: PreTrainedModel, text: tuple[Tensor, int, Tensor | None], **options) -> ExplainGenerateOutput:
    with float64_islands():
        return explain_sequences(model, *text, explain_config=GradELLMConfig(**options))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().clamp_min(1e-30)
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-9)


@some(25)
@given(st.data())
def test_replay_equals_stepwise(data):
    model = data.draw(models())
    text, config = data.draw(texts(model)), data.draw(options(model))
    chunk = data.draw(st.none() | st.integers(1, 7))
    replayed = explain(model, text, **config, step_chunk_size=chunk)
    stepped = explain(model, text, **config, engine="stepwise")
    assert_same(replayed.layer_attributions, stepped.layer_attributions)
    assert_same(replayed.target_scores, stepped.target_scores)


@some(20)
@given(st.data())
def test_the_number_of_steps_replayed_together_does_not_matter(data):
    model = data.draw(models())
    text, config = data.draw(texts(model)), data.draw(options(model))
    whole = explain(model, text, **config)
    for chunk in (1, data.draw(st.integers(2, 6))):
        chunked = explain(model, text, **config, step_chunk_size=chunk)
        assert_same(chunked.layer_attributions, whole.layer_attributions)


@some(15)
@given(st.data())
def test_the_number_of_steps_replayed_together_does_not_matter_at_the_attention_output(data):
    model = data.draw(models(square=True))
    text = data.draw(texts(model))
    config = {**data.draw(options(model)), "channel": "attention_output", "head_weights": None}
    whole = explain(model, text, **config)
    chunked = explain(model, text, **config, step_chunk_size=data.draw(st.integers(1, 6)))
    stepped = explain(model, text, **config, engine="stepwise")
    assert_same(chunked.layer_attributions, whole.layer_attributions)
    assert_same(stepped.layer_attributions, whole.layer_attributions)


@some(20)
@given(st.data())
def test_a_row_is_explained_alone_and_without_padding_as_in_a_padded_batch(data):
    model = data.draw(models())
    token_ids, prompt_length, mask = data.draw(texts(model, min_rows=2))
    config = data.draw(options(model))
    batch = explain(model, (token_ids, prompt_length, mask), **config)
    for row in range(len(token_ids)):
        padded = int((mask[row] == 0).sum())
        alone = explain(model, (token_ids[row : row + 1, padded:], prompt_length - padded, None), **config)
        assert_same(batch.layer_attributions[row, :, :, padded:], alone.layer_attributions[0])
        assert_same(batch.target_scores[row], alone.target_scores[0])


@some(25)
@given(st.data())
def test_only_what_a_step_can_see_is_anything_but_exactly_zero(data):
    model = data.draw(models())
    text, config = data.draw(texts(model)), data.draw(options(model))
    token_ids, prompt_length, mask = text
    token_ids[0, prompt_length] = EOS  # this row ends with its first step
    is_end = token_ids[:, prompt_length:] == EOS
    whole_mask = torch.cat([mask, (is_end.cumsum(1) - is_end.long() == 0).to(mask)], dim=1)
    text = token_ids, prompt_length, whole_mask
    out = explain(model, text, **config, engine=data.draw(st.sampled_from(["replay", "stepwise"])))
    layer_types = getattr(model.config, "layer_types", None)
    for index, layer in enumerate(out.layers):
        window = getattr(model.config, "sliding_window", None)
        if layer_types is not None and layer_types[layer] == "full_attention":
            window = None
        for row in range(len(token_ids)):
            ended = False
            for step in range(token_ids.shape[1] - prompt_length):
                scores = out.layer_attributions[row, index, step]
                visible = torch.arange(len(scores)) < prompt_length + step
                visible[:prompt_length] &= mask[row] != 0
                if window is not None:
                    visible &= torch.arange(len(scores)) >= prompt_length + step - window
                assert not scores[~visible].any()
                assert out.step_mask[row, step] == (not ended)
                if ended:
                    assert not scores.any()
                elif config["spatial"] == "attention" and not config["positive_only"] and config["target"] == "logit":
                    assert scores[visible].all()  # and what it can see has a share
                ended = ended or token_ids[row, prompt_length + step] == EOS


@some(20)
@given(st.data())
def test_the_heatmaps_of_the_layers_add_up_and_relu_applies_to_each_layer(data):
    model = data.draw(models())
    text, config = data.draw(texts(model)), {**data.draw(options(model)), "positive_part": "layer", "head_weights": None}
    signed, positive = (explain(model, text, **{**config, "positive_only": positive}) for positive in (False, True))
    for out in (signed, positive):
        assert_same(out.attributions, out.layer_attributions.sum(1))
    assert_same(positive.layer_attributions, signed.layer_attributions.relu())
    every = explain(model, text, **{**config, "positive_only": False, "layers": "all"})
    assert_same(signed.layer_attributions, every.layer_attributions[:, signed.layers])


@some(15)
@given(st.data())
def test_a_contrast_is_the_difference_of_the_heatmaps_of_both_logits(data):
    model = data.draw(models())
    text = data.draw(texts(model))
    token_ids, prompt_length, _ = text
    chosen = token_ids[:, prompt_length:]
    foils = (chosen + data.draw(st.integers(1, 20))) % model.config.vocab_size
    config = {**data.draw(options(model)), "positive_only": False}
    contrast = explain(model, text, **{**config, "target": "contrast"}, contrast_token_ids=foils)
    of_chosen = explain(model, text, **{**config, "target": "logit"})
    of_foil = explain(model, text, **{**config, "target": lambda logits, ids: logits.gather(-1, foils[..., None])[..., 0]})
    assert_same(contrast.attributions, of_chosen.attributions - of_foil.attributions)
    assert_same(contrast.target_scores, of_chosen.target_scores - of_foil.target_scores)


@some(15)
@given(st.data())
def test_the_heatmap_of_a_probability_is_that_of_its_logarithm_times_the_probability(data):
    model = data.draw(models())
    text, config = data.draw(texts(model)), data.draw(options(model))
    probability, logarithm = (
        explain(model, text, **{**config, "target": target}) for target in ("probability", "log_probability")
    )
    factor = probability.token_probabilities[:, None, :, None]
    assert_same(probability.layer_attributions, factor * logarithm.layer_attributions)
    assert_same(probability.target_scores, logarithm.target_scores.exp())


@some(15)
@given(st.data())
def test_scaling_the_target_scales_the_heatmap(data):
    model = data.draw(models())
    text, config = data.draw(texts(model)), data.draw(options(model))
    factor = data.draw(st.floats(1e-3, 1e3))
    plain = explain(model, text, **{**config, "target": "logit"})
    scaled = explain(
        model, text, **{**config, "target": lambda logits, ids: factor * logits.gather(-1, ids[..., None])[..., 0]}
    )
    assert_same(scaled.layer_attributions, factor * plain.layer_attributions)


@some(15)
@given(st.data())
def test_later_text_does_not_change_the_explanation_of_earlier_steps(data):
    model = data.draw(models())
    token_ids, prompt_length, mask = data.draw(texts(model))
    config = data.draw(options(model))
    whole = explain(model, (token_ids, prompt_length, mask), **config)
    steps = data.draw(st.integers(1, token_ids.shape[1] - prompt_length))
    end = prompt_length + steps
    cut = explain(model, (token_ids[:, :end], prompt_length, mask), **config)
    assert_same(whole.layer_attributions[:, :, :steps, :end], cut.layer_attributions)


@some(15)
@given(st.data())
def test_moving_tokens_from_the_text_to_the_prompt_does_not_change_the_explanation_of_the_rest(data):
    model = data.draw(models())
    token_ids, prompt_length, mask = data.draw(texts(model))
    config = data.draw(options(model))
    moved = data.draw(st.integers(0, token_ids.shape[1] - prompt_length - 1))
    whole = explain(model, (token_ids, prompt_length, mask), **config)
    longer = torch.nn.functional.pad(mask, (0, moved), value=1)
    rest = explain(model, (token_ids, prompt_length + moved, longer), **config)
    assert_same(rest.layer_attributions, whole.layer_attributions[:, :, moved:])


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_an_empty_continuation_has_an_empty_explanation(engine):
    model = tiny_model("llama")
    token_ids, mask = random_text(model, 2, 5, 0, padding=[0, 2])
    out = explain(model, (token_ids, 5, mask), engine=engine)
    assert out.attributions.shape == (2, 0, 5)
    assert out.target_scores.shape == (2, 0)
