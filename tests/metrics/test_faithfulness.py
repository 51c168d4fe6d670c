"""The metrics that perturb prompts, against answers in closed form, brute force, and planted truths."""

import itertools
from functools import partial

import pytest
import torch

from gradellm_hf import InvalidInputError
from gradellm_hf.metrics import (
    deletion,
    hellinger,
    insertion,
    joint_hellinger,
    normalised_area,
    pearson_correlation,
    pi_soft_nc,
    pi_soft_ns,
    rank_correlation,
    soft_nc,
    soft_ns,
)
from tests.support.small_llama import padded_prompts, random_ids, small_llama
from tests.support.toy_models import line, planted

ALL = {
    "soft_ns": soft_ns,
    "soft_nc": soft_nc,
    "pi_soft_ns": partial(pi_soft_ns, pis=(0.3, 0.6)),
    "pi_soft_nc": partial(pi_soft_nc, pis=(0.3, 0.6)),
    "deletion": deletion,
    "insertion": insertion,
    "rank_correlation": rank_correlation,
}


def distance(p, q):
    return (0.5 * (p.sqrt() - q.sqrt()).square().sum(-1)).sqrt()


def distribution(model, kept_effects):
    return (model.head.weight[:, 0] * kept_effects).softmax(-1).detach()


def heatmap(scores, num_steps=1):
    """One row, the same scores of the prompt for each step."""
    scores = torch.tensor(scores, dtype=torch.float64)
    return torch.nn.functional.pad(scores, (0, num_steps)).expand(1, num_steps, -1)


# Closed forms


def test_distances_between_distributions_are_those_of_the_definition():
    p, q = torch.rand(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    torch.testing.assert_close(hellinger(p, q), distance(p.exp(), q.exp()))
    apart = torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf, 0.0])
    assert hellinger(*apart).item() == pytest.approx(1)
    joint_p, joint_q = (x[:2].exp() for x in (p, q))
    product_p, product_q = (torch.outer(x[0], x[1]).flatten() for x in (joint_p, joint_q))
    affinity = 1 - distance(product_p, product_q) ** 2
    found = joint_hellinger(hellinger(p[None, :3], q[None, :3]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(found, (1 - affinity.sqrt()).sqrt()[None])
    assert joint_hellinger(torch.tensor([[1.0, 0.2]]), torch.ones(1, 2, dtype=torch.bool)).item() == 1


def test_soft_metrics_of_a_scores_of_zero_and_one_are_deterministic_and_worked_out_by_hand():
    model, ids = line([0, 0, 3.0, -1.0, 0.5]), torch.tensor([[2, 3, 4, 0]])
    whole, nothing, kept, rest = (distribution(model, x) for x in (2.5, 0.0, 3.0, -0.5))
    z = distance(whole, nothing)
    scores = heatmap([8.0, 2.0, 2.0])  # scaled: 1, 0, 0
    ns = soft_ns(model, ids, 3, scores, num_samples=2)
    nc = soft_nc(model, ids, 3, scores, num_samples=2)
    torch.testing.assert_close(ns, ((z - distance(whole, kept)).clamp_min(0) / z)[None])
    torch.testing.assert_close(nc, (distance(whole, rest) / z)[None])
    assert soft_ns(model, ids, 3, heatmap([0.0, 1.0, 0.0])).item() == 0  # further away than nothing


@pytest.mark.parametrize("metric", ["soft_ns", "soft_nc", "pi_soft_ns", "pi_soft_nc"])
def test_the_mean_over_draws_is_the_expectation_over_all_ways_to_keep_elements(metric):
    effects = [1.4, -0.9, 0.6]
    model, ids = line([0, 0, *effects]), torch.tensor([[2, 3, 4, 0]])
    a = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    r = {
        "soft_ns": a / 4,
        "soft_nc": 1 - a / 4,
        "pi_soft_ns": torch.tensor([0, 0.2, 0.8]),  # mean 1/3: s = 1/5
        "pi_soft_nc": 1 - torch.tensor([0, 1, 1]),  # 1 - calibrate(a, 2/3)
    }[metric].double()
    whole = distribution(model, sum(effects))
    z = distance(whole, distribution(model, 0.0))
    expected = 0.0
    for keep in itertools.product((0, 1), repeat=3):
        keep = torch.tensor(keep).double()
        chance = torch.where(keep == 1, r, 1 - r).prod()
        d = distance(whole, distribution(model, (keep * torch.tensor(effects)).sum()))
        expected += chance * ((z - d).clamp_min(0) if metric.endswith("ns") else d) / z
    options = {"pis": (1 / 3,)} if metric.startswith("pi") else {}
    found = {**ALL, "pi_soft_ns": pi_soft_ns, "pi_soft_nc": pi_soft_nc}[metric](
        model, ids, 3, heatmap(a.tolist()), num_samples=2500, **options
    )
    assert found.item() == pytest.approx(expected.item(), abs=0.02)


@pytest.mark.parametrize("removal", ["zero", "mask", "drop"])
def test_deletion_and_insertion_areas_worked_out_by_hand(removal):
    # The last token has no effect, so that it does not matter that two of the removals keep it.
    model, ids = line([0, 0, 3.0, -1.0, 0.0]), torch.tensor([[2, 3, 4, 0]])
    scores, p = heatmap([2.0, 1.0, 0.0]), lambda x: distribution(model, x)[0]
    if removal == "zero":
        deleted = (p(2.0) / 2 + p(-1.0) + p(0.0) + p(0.0) / 2) / 3
        inserted = (p(0.0) / 2 + p(3.0) + p(2.0) + p(2.0) / 2) / 3
    else:
        deleted = (p(2.0) / 2 + p(-1.0) + p(0.0) / 2) / 2
        inserted = (p(0.0) / 2 + p(3.0) + p(2.0) / 2) / 2
    assert deletion(model, ids, 3, scores, removal=removal).item() == pytest.approx(deleted.item())
    assert insertion(model, ids, 3, scores, removal=removal).item() == pytest.approx(inserted.item())


def test_fewer_portions_take_more_tokens_at_once():
    model, ids = line([0, 0, 3.0, -1.0, 0.5, 0.25]), torch.tensor([[2, 3, 4, 5, 0]])
    p = [distribution(model, x)[0] for x in (2.75, 0.75, 0.0)]  # all, the two with the lowest scores, none
    found = deletion(model, ids, 4, heatmap([4.0, 3.0, 2.0, 1.0]), num_portions=2)
    assert found.item() == pytest.approx((p[0] / 2 + p[1] + p[2] / 2).item() / 2)


def test_whole_generations_are_the_mean_of_their_steps_or_their_joint_probability():
    model, ids = line([0.7, -0.4, 2.0, -1.0]), torch.tensor([[2, 3, 0, 1, 0]])
    scores = torch.zeros(1, 3, 5, dtype=torch.float64)
    scores[0, :, :2] = torch.tensor([[1.0, 0.5], [1.0, 0.5], [0.0, 6.0]])

    def curve(step, kept):  # the generated prefix stays
        prefix = (0.0, 0.7, 0.3)[step]
        return [distribution(model, x + prefix)[(0, 1, 0)[step]] for x in kept]

    first_goes, second_goes = [1.0, -1.0, 0.0], [1.0, 2.0, 0.0]
    curves = [curve(0, first_goes), curve(1, first_goes), curve(2, second_goes)]
    area = [(c[0] / 2 + c[1] + c[2] / 2) / 2 for c in curves]
    assert deletion(model, ids, 2, scores).item() == pytest.approx((sum(area) / 3).item())
    joint = [curve(step, second_goes) for step in range(3)]  # the mean of the scores puts the second one first
    joint = [(joint[0][k] * joint[1][k] * joint[2][k]) ** (1 / 3) for k in range(3)]
    expected = (joint[0] / 2 + joint[1] + joint[2] / 2) / 2
    assert deletion(model, ids, 2, scores, level="sequence").item() == pytest.approx(expected.item())


def test_rank_correlation_compares_with_leaving_one_out():
    model, ids = line([0, 0, 3.0, -1.0, 0.5, 0.25]), torch.tensor([[2, 3, 4, 5, 0]])
    whole = distribution(model, 2.75)
    changes = [distance(whole, distribution(model, 2.75 - x)) for x in (3.0, -1.0, 0.5, 0.25)]
    assert rank_correlation(model, ids, 4, heatmap([float(x) for x in changes])).item() == pytest.approx(1)
    assert rank_correlation(model, ids, 4, heatmap([-float(x) for x in changes])).item() == pytest.approx(-1)
    assert rank_correlation(model, ids, 4, heatmap([0.0, 0, 0, 0])).isnan().all()


def test_pearson_correlation_compares_with_leaving_one_out_by_size():
    model, ids = line([0, 0, 3.0, -1.0, 0.5, 0.25]), torch.tensor([[2, 3, 4, 5, 0]])
    whole = distribution(model, 2.75)
    changes = torch.tensor([float(distance(whole, distribution(model, 2.75 - x))) for x in (3.0, -1.0, 0.5, 0.25)])
    assert pearson_correlation(model, ids, 4, heatmap((5 * changes + 1).tolist())).item() == pytest.approx(1)
    scores = torch.tensor([0.5, 0.1, 0.0, 0.2])
    expected = torch.corrcoef(torch.stack([scores, changes]))[0, 1]
    assert pearson_correlation(model, ids, 4, heatmap(scores.tolist())).item() == pytest.approx(expected.item(), abs=1e-5)
    assert pearson_correlation(model, ids, 4, heatmap([1.0, 1, 1, 1])).isnan().all()


# Planted truths


@pytest.mark.parametrize("level", ["step", "sequence"])
def test_the_planted_truth_scores_best_its_reverse_worst_and_random_between(level):
    model, generator = planted(), torch.Generator().manual_seed(7)
    prompts = torch.stack([torch.randperm(8, generator=generator) + 3 for _ in range(6)])
    prompts[:, 2], prompts[:, 5] = 1, 2
    ids = torch.cat([prompts, torch.zeros(6, 1, dtype=torch.long)], dim=1)
    truth = torch.zeros(6, 1, 9)
    truth[:, 0, :8] = model.embedding(prompts).sum(-1).abs().detach()
    reverse = truth.clone()
    reverse[..., :8] = truth[..., :8].max() - truth[..., :8]
    noise = torch.rand(12, 6, 1, 9, generator=generator)
    methods = torch.cat([truth[None], reverse[None], noise])
    for name, metric in ALL.items():
        values = (
            metric(model, ids, 8, methods, num_samples=8, level=level)
            if "soft" in name
            else metric(model, ids, 8, methods, level=level)
        )
        if name.startswith("pi"):
            values = normalised_area(values, (0.3, 0.6))
        best, worst, random = values[0].mean(), values[1].mean(), values[2:].mean()
        if name == "deletion":
            best, worst, random = -best, -worst, -random
        if name not in ("soft_ns", "soft_nc"):  # not at equal retention, so no order is promised
            assert best > random + 0.05, name
            assert worst < random - 0.02, name


def test_pi_soft_metrics_do_not_see_the_size_of_scores_which_plain_soft_metrics_reward():
    model = small_llama()
    ids, attributions = random_ids(2, 11), torch.rand(2, 3, 11, generator=torch.Generator().manual_seed(1))
    both = torch.stack([attributions, 0.3 * attributions])
    for metric in (pi_soft_ns, pi_soft_nc):
        large, small = metric(model, ids, 8, both)
        torch.testing.assert_close(large, small, rtol=0, atol=1e-5)
    ns = soft_ns(model, ids, 8, both, scaling="none", num_samples=16).mean(-1)
    nc = soft_nc(model, ids, 8, both, scaling="none", num_samples=16).mean(-1)
    assert ns[0] > ns[1]  # keeps more
    assert (nc[0] - nc[1]).abs() > 0.01
    scaled = soft_ns(model, ids, 8, both, num_samples=2)
    torch.testing.assert_close(scaled[0], scaled[1])


# Batches, draws, padding


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("level", ["step", "sequence"])
def test_padding_ends_of_rows_and_batch_sizes_change_nothing(name, level):
    model, metric = small_llama(), ALL[name]
    prompts = padded_prompts((6, 4))
    ids = torch.cat([prompts["input_ids"], random_ids(2, 3, 8)], dim=1)
    mask = torch.cat([prompts["attention_mask"], torch.tensor([[1, 1, 1], [1, 1, 0]])], dim=1)
    # Of zeros and ones, so that nothing depends on the draws; distinct, so that their order is clear.
    attributions = torch.zeros(2, 3, 9)
    deterministic = torch.tensor([1.0, 0, 1, 0]) if "soft" in name else torch.tensor([4.0, 1, 3, 2])
    attributions[:, :, 2:6] = deterministic
    options = {"level": level, **({"pis": (0.5,)} if name.startswith("pi") else {})}
    metric = {"pi_soft_ns": pi_soft_ns, "pi_soft_nc": pi_soft_nc}.get(name, metric)
    together = metric(model, ids, 6, attributions, mask, batch_size=3, **options)
    one_by_one = metric(model, ids, 6, attributions, mask, batch_size=1, **options)
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)
    alone = metric(model, ids[1:, 2:8], 4, attributions[1:, :2, 2:8], **options)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(ALL))
def test_methods_compared_together_see_the_same_draws(name):
    model, ids = small_llama(), random_ids(2, 8)
    attributions = torch.rand(2, 2, 2, 8, generator=torch.Generator().manual_seed(1))
    options = {} if name == "rank_correlation" else {"generator": torch.Generator().manual_seed(5)}
    together = ALL[name](model, ids, 6, attributions, **options)
    for method in range(2):
        options = {} if name == "rank_correlation" else {"generator": torch.Generator().manual_seed(5)}
        alone = ALL[name](model, ids, 6, attributions[method], batch_size=2, **options)
        torch.testing.assert_close(together[method], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("removal", ["mask", "drop"])
def test_removed_tokens_are_as_if_they_had_never_been_written(removal):
    model, ids = small_llama(), random_ids(1, 6, seed=3)
    scores = torch.tensor([[[2.0, 5, 1, 4, 9, 0]]])
    expected = []
    for gone in ([], [1], [1, 3], [1, 3, 0], [1, 3, 0, 2]):
        kept = [i for i in range(5) if i not in gone]
        positions = torch.tensor([kept]) if removal == "mask" else torch.arange(len(kept))[None]
        with torch.no_grad():
            logits = model(input_ids=ids[:, kept], position_ids=positions, attention_mask=torch.ones(1, len(kept))).logits
        expected.append(logits[0, -1].softmax(-1)[ids[0, 5]].item())
    area = (sum(expected) - (expected[0] + expected[-1]) / 2) / 4
    assert deletion(model, ids, 5, scores, removal=removal).item() == pytest.approx(area, rel=1e-4)


def test_fixed_positions_are_neither_removed_nor_counted():
    model, ids = line([0, 0, 3.0, -1.0, 0.5]), torch.tensor([[2, 3, 4, 0]])
    fixed = torch.tensor([False, True, False])
    p = [distribution(model, x)[0] for x in (2.5, -0.5, -1.0)]
    found = deletion(model, ids, 3, heatmap([2.0, 9.0, 1.0]), fixed=fixed)
    assert found.item() == pytest.approx((p[0] / 2 + p[1] + p[2] / 2).item() / 2)
    whole, without = distribution(model, 2.5), distribution(model, -1.0)
    kept = distance(whole, distribution(model, 2.0))
    ns = soft_ns(model, ids, 3, heatmap([2.0, 9.0, 1.0]), fixed=fixed)
    assert ns.item() == pytest.approx(((distance(whole, without) - kept) / distance(whole, without)).item())


def test_equal_scores_are_ordered_by_the_generator_the_same_for_every_method():
    model, ids = line([0, 0, 3.0, -1.0, 0.5]), torch.tensor([[2, 3, 4, 0]])
    same = torch.stack([heatmap([1.0, 1, 1]), heatmap([0.0, 0, 0])])
    orders = [deletion(model, ids, 3, same, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert all(o[0] == o[1] for o in orders)
    assert len({round(o[0].item(), 9) for o in orders}) > 1


def test_the_prompt_that_changes_nothing_has_no_soft_metrics():
    model, ids = line([0, 0, 0.0, 0.0]), torch.tensor([[2, 3, 0]])
    for metric in (soft_ns, soft_nc):
        assert metric(model, ids, 2, heatmap([1.0, 0.0])).isnan().all()


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (soft_ns, {"num_samples": 0}, "`num_samples` must be an int of at least 1"),
        (soft_ns, {"scaling": "softmax"}, "`scaling` must be 'minmax' or 'none'"),
        (soft_nc, {"level": "token"}, "`level` must be 'step' or 'sequence'"),
        (soft_nc, {"generator": 3}, "`generator` must be a torch.Generator"),
        (soft_nc, {"batch_size": 0}, "`batch_size` must be an int of at least 1"),
        (pi_soft_ns, {"pis": ()}, "`pis` must be shares between 0 and 1, at least one"),
        (pi_soft_nc, {"pis": (2.0,)}, "between 0 and 1"),
        (deletion, {"removal": "blur"}, "`removal` must be 'zero' or 'mask' or 'drop'"),
        (insertion, {"num_portions": 0}, "`num_portions` must be None"),
        (rank_correlation, {"fixed": torch.ones(3, dtype=torch.bool)}, "no prompt position that may be taken out"),
        (rank_correlation, {"fixed": torch.ones(2, dtype=torch.bool)}, "`fixed` must be a bool tensor of shape"),
    ],
)
def test_bad_arguments_are_refused(metric, options, message):
    with pytest.raises(InvalidInputError, match=message):
        metric(line([0, 0, 1.0]), torch.tensor([[2, 2, 2, 0]]), 3, heatmap([1.0, 2, 3]), **options)


def test_heatmaps_of_other_texts_are_refused():
    model, ids = line([0, 0, 1.0]), torch.tensor([[2, 2, 2, 0]])
    with pytest.raises(InvalidInputError, match=r"must have shape \[..., R, N, S\] = \[..., 1, 1, 4\], got \[1, 1, 3\]"):
        soft_ns(model, ids, 3, torch.rand(1, 1, 3))
    with pytest.raises(InvalidInputError, match="not finite"):
        deletion(model, ids, 3, heatmap([1.0, 2, torch.nan]))
    with pytest.raises(InvalidInputError, match="no token after the prompt"):
        soft_ns(model, ids, 4, torch.rand(1, 0, 4))
