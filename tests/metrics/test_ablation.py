"""LDS and the drop of the strongest sources: closed forms, and a loop that runs the model on what is left of each text."""

import math
from functools import partial

import pytest
import torch
from scipy.stats import spearmanr

from gradellm_hf import InvalidInputError
from gradellm_hf.metrics import deletion, insertion, linear_datamodelling_score, top_k_drop
from tests.support.small_llama import padded_prompts, random_ids, small_llama
from tests.support.toy_models import line

lds = linear_datamodelling_score


def heatmap(scores):
    return torch.nn.functional.pad(torch.tensor(scores, dtype=torch.float64), (0, 1))[None, None]


def log_p(x, vocabulary=6):
    """Log-probability of token 0 in `line`, if what is kept adds up to `x`."""
    logits = torch.zeros(vocabulary, dtype=torch.float64)
    logits[0], logits[1] = x / 2, -x / 2
    return logits.log_softmax(-1)[0].item()


@pytest.mark.parametrize("removal", ["zero", "mask", "drop"])
def test_the_effects_of_an_additive_model_have_an_lds_of_one_and_their_reverse_of_minus_one(removal):
    model, ids = line([0, 0, 3.0, -1.0, 0.5, 0.0]), torch.tensor([[2, 3, 4, 5, 0]])
    truth = heatmap([3.0, -1.0, 0.5, 0.0])
    found = lds(model, ids, 4, torch.stack([truth, -truth, 0 * truth]), removal=removal)
    assert found[:2, 0].tolist() == pytest.approx([1, -1])
    assert found[2].isnan().all()


def test_sources_score_the_sum_of_their_tokens():
    model, ids = line([0, 0, 3.0, -1.0, 0.5, 0.0]), torch.tensor([[2, 3, 4, 5, 0]])
    sources = torch.tensor([0, 0, 1, -1])  # worth 2 and 0.5; the last position always stays
    halves = torch.stack([heatmap([0.0, 2.0, 0.5, 9.0]), heatmap([1.0, 1.0, 3.0, 9.0])])
    whole = lds(model, ids, 4, halves, sources=sources, num_masks=200)
    assert whole[0].item() == pytest.approx(1)
    assert 0 < whole[1].item() < 0.9  # the smaller one is put first
    with_single_tokens = lds(model, ids, 4, halves, num_masks=200)
    assert with_single_tokens[0].item() < 0.5


@pytest.mark.parametrize("removal", ["zero", "mask", "drop"])
def test_the_drop_is_what_the_strongest_sources_are_worth(removal):
    model, ids = line([0, 0, 3.0, -1.0, 0.5, 0.0]), torch.tensor([[2, 3, 4, 5, 0]])
    scores = torch.stack([heatmap([4.0, 3.0, 2.0, 1.0]), heatmap([0.0, 1.0, 2.0, 3.0])])
    for k, left in ((1, (-0.5, 2.5)), (2, (0.5, 2.0)), (3, (0.0, 3.0))):
        expected = [log_p(2.5) - log_p(x) for x in left]
        if removal == "zero":
            assert top_k_drop(model, ids, 4, scores, k=k, removal=removal)[:, 0].tolist() == pytest.approx(expected)
        else:  # the last token stays, so the next one goes
            second = {1: 2.0, 2: 3.0, 3: 0.0}[k]
            expected[1] = log_p(2.5) - log_p(second)
            assert top_k_drop(model, ids, 4, scores, k=k, removal=removal)[:, 0].tolist() == pytest.approx(expected)
    everything = top_k_drop(model, ids, 4, scores, k=9, removal=removal)
    assert everything[:, 0].tolist() == pytest.approx([log_p(2.5) - log_p(0.0)] * 2)


def test_the_strongest_source_is_left_out_as_a_whole():
    model, ids = line([0, 0, 3.0, -1.0, 0.5, 0.0]), torch.tensor([[2, 3, 4, 5, 0]])
    found = top_k_drop(model, ids, 4, heatmap([4.0, -4.0, 1.0, 0.0]), sources=torch.tensor([0, 0, 1, 1]))
    assert found.item() == pytest.approx(log_p(2.5) - log_p(2.0))


@pytest.mark.parametrize("removal", ["mask", "drop"])
@pytest.mark.parametrize("level", ["step", "sequence"])
def test_lds_and_drop_are_those_of_a_loop_over_texts(removal, level):
    model, K = small_llama(), 12
    prompts = padded_prompts((6, 4))
    ids = torch.cat([prompts["input_ids"], random_ids(2, 3, 8)], dim=1)
    mask = torch.cat([prompts["attention_mask"], torch.tensor([[1, 1, 1], [1, 1, 0]])], dim=1)
    sources = torch.tensor([[0, 1, 1, 2, 2, 0], [0, 0, 0, 1, 1, 2]])  # of the second row, two positions are padding
    attributions = torch.rand(2, 2, 3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {"removal": removal, "level": level, "sources": sources, "batch_size": 5}
    scores = lds(model, ids, 6, attributions, mask, num_masks=K, **options)
    drops = top_k_drop(model, ids, 6, attributions, mask, k=1, **options)
    kept = torch.rand(2, K, 3, generator=torch.Generator().manual_seed(0)) < 0.5

    def log_probabilities(row, stays):
        """Of the row's tokens, with the sources of `stays` only."""
        where = [i for i in range(9) if mask[row, i] and (i >= 5 or sources[row, i] in stays)]
        where = [i for i in where if i < 6 or mask[row, i]]
        offset = (mask[row, :6] == 0).sum().item()
        positions = [i - offset for i in where] if removal == "mask" else list(range(len(where)))
        with torch.no_grad():
            logits = model(
                input_ids=ids[row, where][None],
                position_ids=torch.tensor([positions]),
                attention_mask=torch.ones(1, len(where)),
            ).logits[0]
        first = where.index(6)
        return [logits[first - 1 + n].log_softmax(-1)[ids[row, i]].item() for n, i in enumerate(where[first:])]

    for method in range(2):
        for row in range(2):
            steps = mask[row, 6:].sum().item()
            values = torch.tensor([log_probabilities(row, kept[row, k].nonzero()[:, 0].tolist()) for k in range(K)])
            sums = torch.zeros(steps, 3, dtype=torch.float64)
            for i in range(5):  # the last one always stays
                if mask[row, i]:
                    sums[:, sources[row, i]] += attributions[method, row, :steps, i]
            if level == "sequence":
                sums, values = sums.mean(0, keepdim=True), values.mean(1, keepdim=True)
            x = [[sums[n, kept[row, k]].sum().item() for k in range(K)] for n in range(len(sums))]
            expected = [spearmanr(x[n], values[:, n].numpy().round(5)).statistic for n in range(len(sums))]
            assert scores[method, row].item() == pytest.approx(sum(expected) / len(expected), abs=1e-6)
            whole = torch.tensor(log_probabilities(row, [0, 1, 2]))
            present = {0: [0, 1, 2], 1: [0, 1]}[row]
            drop = []
            for n in range(len(sums)):
                best = max(present, key=lambda g: sums[n, g].item())
                change = whole - torch.tensor(log_probabilities(row, [g for g in range(3) if g != best]))
                drop.append(change.mean().item() if level == "sequence" else change[n].item())
            assert drops[method, row].item() == pytest.approx(sum(drop) / len(drop), abs=1e-5)


def test_deletion_and_insertion_take_sources_too():
    model, ids = line([0, 0, 3.0, -1.0, 0.5, 0.0]), torch.tensor([[2, 3, 4, 5, 0]])
    p = [math.exp(log_p(x)) for x in (2.5, 0.5, 0.0, 2.0)]
    pair = {"sources": torch.tensor([0, 0, 1, 1])}
    scores = heatmap([9.0, -4.0, 1.0, 0.0])
    assert deletion(model, ids, 4, scores, **pair).item() == pytest.approx(p[0] / 4 + p[1] / 2 + p[2] / 4)
    assert insertion(model, ids, 4, scores, **pair).item() == pytest.approx(p[2] / 4 + p[3] / 2 + p[0] / 4)


def test_aligned_areas_are_worked_out_by_hand_and_see_the_size_of_scores():
    # Effects so far below zero that log-probabilities are linear in them: 60 percent, 30 percent, 10 percent.
    model, ids = line([0, 0, 24.0, 12.0, 4.0, -80.0]), torch.tensor([[2, 3, 4, 5, 0]])
    fixed = torch.tensor([False, False, False, True])
    true, flat, late = heatmap([6.0, 3.0, 1.0, 0.0]), heatmap([1.2, 1.1, 1.0, 0.0]), heatmap([1.0, 3.0, 6.0, 0.0])
    found = deletion(model, ids, 4, torch.stack([true, flat, late]), aligned=True, fixed=fixed)[:, 0]
    curve = [1.0, 0.4, 0.1, 0.0]

    def area(c):
        return (c[0] / 2 + c[1] + c[2] + c[3] / 2) / 3

    assert found[0].item() == pytest.approx(area(curve))
    left = [1, 1 - 1.2 / 3.3, 1 - 2.3 / 3.3, 0]
    assert found[1].item() == pytest.approx(area([c + abs(c - s) for c, s in zip(curve, left)]))
    late_curve, left = [1.0, 0.9, 0.6, 0.0], [1, 0.4, 0.1, 0]
    assert found[2].item() == pytest.approx(area([min(1, c + abs(c - s)) for c, s in zip(late_curve, left)]))
    rising = insertion(model, ids, 4, torch.stack([true, late]), aligned=True, fixed=fixed)[:, 0]
    assert rising[0].item() == pytest.approx(area([0.0, 0.6, 0.9, 1.0]))
    assert rising[1].item() == pytest.approx(area([0.0, 0.0, 0.0, 1.0]))  # 0.1 - 0.5 and 0.4 - 0.5, cut off
    harmful = line([0, 0, -1.0, -2.0, -3.0, 0.0])
    assert deletion(harmful, ids, 4, true, aligned=True, fixed=fixed).isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": torch.zeros(3, dtype=torch.long)}, r"shape \[P\] or \[R, P\], \[4\] or \[1, 4\].* got \[3\]"),
        ({"sources": torch.zeros(4)}, "got torch.float32"),
        ({"sources": torch.tensor([0, 1, 2, 7])}, "below 4, got 0 to 7"),
        ({"sources": torch.full((4,), -1)}, "no source that may be taken out"),
        ({"sources": [0, 1, 2, 3]}, "got list"),
        ({"removal": "blur"}, "`removal` must be"),
    ],
)
def test_sources_that_cannot_be_are_refused(options, message):
    model, ids = line([0, 0, 3.0, -1.0, 0.5, 0.0]), torch.tensor([[2, 3, 4, 5, 0]])
    for metric in (lds, top_k_drop, deletion, insertion):
        with pytest.raises(InvalidInputError, match=message):
            metric(model, ids, 4, heatmap([1.0, 2, 3, 4]), **options)


def test_numbers_out_of_range_are_refused():
    arguments = line([0, 0, 3.0, -1.0]), torch.tensor([[2, 3, 0]]), 2, heatmap([1.0, 2.0])
    for metric, message in (
        (partial(lds, num_masks=1), "`num_masks` must be an int of at least 2"),
        (partial(top_k_drop, k=0), "`k` must be an int of at least 1"),
        (partial(deletion, aligned=1), "`aligned` must be True or False"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            metric(*arguments)
