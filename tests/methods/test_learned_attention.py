"""AT2: what it learns from a planted truth, and its features against a loop over masks."""

import pytest
import torch

from gradellm_hf import InvalidInputError
from gradellm_hf.methods import at2, learn_at2
from gradellm_hf.methods.learned_attention import ablated, fit
from gradellm_hf.metrics import linear_datamodelling_score
from gradellm_hf.metrics.perturbation import PerturbedText
from tests.support.small_llama import padded_prompts, random_ids, small_llama
from tests.support.tiny_models import tiny_model


def attention_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, output_attentions=True).attentions


def test_scores_are_weighted_sums_of_attention_to_the_positions_before():
    model = tiny_model("llama", attn_implementation="eager", dtype=torch.float32)
    ids = torch.randint(53, (2, 9), generator=torch.Generator().manual_seed(4))
    weights = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    scores = at2(weights)(model, ids, 6)
    layers = attention_of(model, ids)
    for step in range(3):
        expected = sum(weights[layer, h] * layers[layer][:, h, 5 + step] for layer in range(5) for h in range(6))
        torch.testing.assert_close(scores[:, step, : 6 + step], expected[:, : 6 + step], rtol=1e-4, atol=1e-5)
    assert (scores < 0).any()


def test_padding_changes_nothing():
    model, prompts = small_llama(hidden_size=60), padded_prompts((7, 4))
    ids = torch.cat([prompts["input_ids"], random_ids(2, 3, 8)], dim=1)
    config = model.config
    method = at2(torch.randn(config.num_hidden_layers, config.num_attention_heads, generator=torch.Generator().manual_seed(1)))
    together = method(model, ids, 7, prompts["attention_mask"])
    torch.testing.assert_close(together[1:, :, 3:], method(model, ids[1:, 3:], 4), rtol=2e-3, atol=1e-4)


def test_the_heads_that_predict_the_ablations_are_learned_with_their_sign():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 32, 6, generator=generator)
    truth = torch.tensor([3.0, 0, 0, -1, 0, 0])
    outputs = 5 + 2 * features @ truth
    weights = fit(features, outputs, 1000, 1e-2, 40, generator)
    torch.testing.assert_close(weights, truth / 4, rtol=0, atol=0.02)
    assert weights.abs().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("level", ["sequence", "step"])
def test_features_and_logits_are_those_of_a_loop_over_masks(level):
    model = tiny_model("llama", attn_implementation="eager", dtype=torch.float32)
    ids, sources = torch.randint(53, (1, 8), generator=torch.Generator().manual_seed(4)), torch.tensor([0, 0, 1, 2, -1, 2])
    text = PerturbedText(model, ids, 6, keep_last=True)
    features, outputs, shape = ablated(text, sources, 5, level, torch.Generator().manual_seed(0))
    assert shape == (5, 6)
    layers, masks = attention_of(model, ids), torch.rand(1, 5, 3, generator=torch.Generator().manual_seed(0))[0] < 0.5
    assert features.shape == ((1, 5, 30) if level == "sequence" else (2, 5, 30))
    for k, mask in enumerate(masks):
        stays = torch.tensor([1 if i >= 4 else int(mask[sources[i]]) for i in range(8)])[None]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=stays, position_ids=torch.arange(8)[None]).logits.double()
        steps = torch.stack([logits[0, 5 + n].log_softmax(-1)[ids[0, 6 + n]] for n in range(2)])
        for target, chosen in enumerate([[0, 1]] if level == "sequence" else [[0], [1]]):
            assert outputs[target, k].item() == pytest.approx(torch.logit(steps[chosen].sum().exp()).item(), rel=1e-4)
            for layer in range(5):
                for head in range(6):
                    expected = 0.0
                    for i in range(4):  # position 4 is no source, and the last one always stays
                        weight = sum(layers[layer][0, head, 5 + n, i] for n in chosen) / len(chosen)
                        expected += weight * (1 if mask[sources[i]] else -1)
                    assert features[target, k, 6 * layer + head].item() == pytest.approx(expected.item(), abs=1e-5)


def test_learned_weights_rank_ablations_better_than_uniform_ones():
    model = tiny_model("llama", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    texts = [(torch.randint(53, (1, 14), generator=generator), 12, None) for _ in range(6)]
    with torch.inference_mode():
        weights = learn_at2(model, texts, num_masks=16, learning_rate=1e-2, num_steps=200)
    assert torch.equal(weights, learn_at2(model, texts, num_masks=16, learning_rate=1e-2, num_steps=200))

    def lds(weights):
        options = {"level": "sequence", "num_masks": 64, "generator": torch.Generator().manual_seed(9)}
        scores = [linear_datamodelling_score(model, ids, p, at2(weights)(model, ids, p), **options) for ids, p, _ in texts]
        return torch.cat(scores).mean().item()

    assert lds(weights) > lds(torch.full((5, 6), 1 / 30)) + 0.1
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_bad_input_is_refused():
    model, ids = small_llama(), random_ids(1, 8)
    with pytest.raises(InvalidInputError, match=r"`weights` must be finite and of shape \[L, H\]"):
        at2(torch.ones(3))
    with pytest.raises(InvalidInputError, match="`weights` are of"):
        at2(torch.ones(3, 77))(model, ids, 6)
    with pytest.raises(InvalidInputError, match="`texts` is empty"):
        learn_at2(model, [])
    with pytest.raises(InvalidInputError, match="`num_masks` must be an int of at least 2"):
        learn_at2(model, [(ids, 6, None)], num_masks=1)
