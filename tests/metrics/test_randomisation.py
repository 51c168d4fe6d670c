"""Weights that are shuffled layer by layer, and put back."""

import pytest
import torch
from scipy.stats import spearmanr

from gradellm_hf import InvalidInputError
from gradellm_hf.methods import attention_mean, grad_ellm, random
from gradellm_hf.metrics import weight_randomisation
from tests.support.small_llama import padded_prompts, random_ids, small_llama
from tests.support.tiny_models import tiny_model


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model, before):
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_of_the_model_fall_apart_and_scores_of_chance_stay(family):
    model = tiny_model(family)
    ids, before = torch.randint(53, (3, 40), generator=torch.Generator().manual_seed(0)), weights(model)
    explained = weight_randomisation(model, grad_ellm, ids, 38)
    assert explained.shape == (model.config.num_hidden_layers, 3)
    assert (explained[-1] < 0.5).all()
    assert (explained[0] < 0.999).all()
    assert (weight_randomisation(model, random, ids, 38) > 0.999).all()
    assert_same(model, before)


def test_cascading_shuffles_more_and_more_layers_and_single_layers_one_at_a_time():
    model, ids = tiny_model("llama"), torch.randint(53, (1, 12), generator=torch.Generator().manual_seed(0))
    before, changed = weights(model), []

    def watching(model, *arguments):
        now = model.state_dict()
        names = [name for name, value in before.items() if not torch.equal(now[name], value)]
        changed.append({int(name.split(".")[2]) for name in names if name.startswith("model.layers.")})
        assert len(names) == sum(name.startswith("model.layers.") for name in names)
        return attention_mean(model, *arguments)

    weight_randomisation(model, watching, ids, 10)
    weight_randomisation(model, watching, ids, 10, cascading=False)
    assert changed == [set(), {4}, {3, 4}, {2, 3, 4}, {1, 2, 3, 4}, {0, 1, 2, 3, 4}, set(), {4}, {3}, {2}, {1}, {0}]
    assert_same(model, before)


def test_correlations_are_over_the_prompt_and_the_mean_of_the_steps_of_a_row():
    model = small_llama()
    prompts = padded_prompts((6, 4))
    ids = torch.cat([prompts["input_ids"], random_ids(2, 3, 8)], dim=1)
    mask = torch.cat([prompts["attention_mask"], torch.tensor([[1, 1, 1], [1, 1, 0]])], dim=1)
    calls = []

    def method(*arguments):
        calls.append(torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(len(calls))))
        return calls[-1]

    found = weight_randomisation(model, method, ids, 6, mask)
    for layer in range(len(found)):
        for row, (padding, steps) in enumerate([(0, 3), (2, 2)]):
            one, other = calls[0][row, :, padding:6], calls[layer + 1][row, :, padding:6]
            expected = [spearmanr(one[n], other[n]).statistic for n in range(steps)]
            assert found[layer, row].item() == pytest.approx(sum(expected) / steps)


@pytest.mark.parametrize("error", [KeyboardInterrupt, InvalidInputError])
def test_the_model_has_its_weights_again_after_an_error(error):
    model, ids = small_llama(), random_ids(1, 8)
    before, calls = weights(model), []

    def failing(*arguments):
        calls.append(weights(model))
        if len(calls) == 3:
            raise error("stopped")
        return attention_mean(*arguments)

    with torch.inference_mode(), pytest.raises(error):
        weight_randomisation(model, failing, ids, 6)
    assert any(not torch.equal(calls[-1][name], value) for name, value in before.items())
    assert_same(model, before)


def test_the_same_generator_shuffles_in_the_same_way():
    model, ids = small_llama(), random_ids(1, 12)
    first, again, other = (
        weight_randomisation(model, attention_mean, ids, 10, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bad_input_is_refused():
    model, ids = small_llama(), random_ids(1, 8)
    with pytest.raises(InvalidInputError, match="`method` must be a function"):
        weight_randomisation(model, "attention_mean", ids, 6)
    with pytest.raises(InvalidInputError, match="`cascading` must be True or False"):
        weight_randomisation(model, attention_mean, ids, 6, cascading=1)
