"""What calibration measures of a text: effects of leaving tokens out, and what each head says of them."""

import pytest
import torch

from gradellm_hf import GradELLMConfig, HeadWeights, explain_sequences
from gradellm_hf.architecture.facts import look_at
from gradellm_hf.architecture.running import explainable
from gradellm_hf.calibration.features import FEATURES, head_features
from gradellm_hf.calibration.texts import balanced_order
from gradellm_hf.sequences.given import given_sequences
from tests.support.tiny_models import WINDOW, float64_islands, random_text, tiny_model

PROMPT, STEPS = 11, 6
FAMILIES = ["llama", "mistral_windowed", "gpt2"]


def text_of(model):
    facts, (token_ids, _) = look_at(model), random_text(model, 1, PROMPT, STEPS)
    return facts, token_ids, given_sequences(facts, token_ids, PROMPT, None)


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_heatmaps_of_a_model_in_which_one_head_counts(family, chunk, engine):
    model = tiny_model(family)
    facts, token_ids, text = text_of(model)
    sources = torch.tensor([0, 5, 9, 12, 15])
    assert WINDOW < PROMPT - 5  # some sources are outside of windows
    config = GradELLMConfig(engine=engine, step_chunk_size=chunk)
    with float64_islands(), explainable(model):
        features = head_features(facts, text, config, sources, None)
        for name in FEATURES:
            layers, heads = features[name].shape[:2]
            assert (layers, heads) == (model.config.num_hidden_layers, model.config.num_attention_heads)
            for layer, head in ((0, 0), (1, 2), (layers - 1, heads - 1)):
                one = torch.zeros(layers, heads)
                one[layer, head] = 1
                weighted = GradELLMConfig(head_weights=HeadWeights(one, name, model.config.model_type))
                expected = explain_sequences(model, token_ids, PROMPT, explain_config=weighted).attributions[0][:, sources]
                torch.testing.assert_close(features[name][layer, head], expected, rtol=1e-5, atol=1e-7, check_dtype=False)
                assert expected.any()


def test_every_kind_comes_as_often_as_it_can_from_the_first_prompt_on():
    kinds = ["code"] * 6 + ["facts"] * 3 + ["news"]
    order = balanced_order(kinds, 0)
    assert sorted(order) == list(range(10))
    assert sorted(kinds[index] for index in order[:3]) == ["code", "facts", "news"]
    assert sorted(kinds[index] for index in order[:7]) == ["code"] * 3 + ["facts"] * 3 + ["news"]
    assert order == balanced_order(kinds, 0)
    assert order != balanced_order(kinds, 1)
