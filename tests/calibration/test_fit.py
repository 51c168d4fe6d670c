"""The fit finds the heads that were planted, says so by held-out folds, and shrinks what it does not know."""

import pytest
import torch

from gradellm_hf.calibration.fit import FEATURES, PULLS, learn, minimised, pearson
from gradellm_hf.errors import InvalidInputError

L, H, N, K = 2, 3, 4, 9
CPU = torch.device("cpu")


def texts(number=24, *, right="magnitude", planted=(1, 2), noise=0.0, seed=0):
    """Random features; the effects are one head's share of the feature `right`."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(number):
        features = {name: torch.rand(L, H, N, K, generator=generator) ** 3 for name in FEATURES}
        effects = features[right][planted] * 0.1 + noise * torch.rand(N, K, generator=generator)
        made.append({"effects": effects, "sources": torch.arange(K), "before": torch.arange(K, K + N), **features})
        made[-1]["is_sink"] = torch.zeros(K, dtype=torch.bool)
    return made


def folds(number=24):
    return [str(index % 4) for index in range(number)]


@pytest.mark.parametrize("right", FEATURES)
def test_the_planted_head_of_the_planted_feature_gets_the_largest_weight(right):
    fitted = learn(texts(right=right), folds(), CPU)
    assert fitted.feature == right
    assert fitted.values.shape == (L, H)
    assert fitted.values.argmax() == 5  # layer 1, head 2
    assert fitted.values[1, 2] > 10 * fitted.values.flatten()[:5].max()
    held_out = fitted.report["held_out"]
    assert held_out["after"]["rank"] > 0.95 > 0.8 > held_out["before"]["rank"]
    assert held_out["after"]["pearson"] > 0.95
    assert set(fitted.report["by_fold"]) == set("0123")


def test_effects_without_a_reason_are_not_explained_in_held_out_folds():
    noise = texts()
    generator = torch.Generator().manual_seed(1)
    for text in noise:
        text["effects"] = torch.rand(N, K, generator=generator)
    fitted = learn(noise, folds(), CPU)
    assert abs(fitted.report["held_out"]["after"]["rank"]) < 0.15


def test_a_stronger_pull_keeps_the_weights_closer_to_each_other():
    generator = torch.Generator().manual_seed(1)
    features, effects = torch.rand(40, K, 6, generator=generator), torch.rand(40, K, generator=generator)
    seen, fold = torch.ones(40, K, dtype=torch.bool), torch.arange(40) % 4
    weights = minimised(features, effects, seen, ~seen, fold, 4)
    assert weights.shape == (6, len(PULLS), 5)
    spread = weights.log().std(0)
    assert (spread.diff(dim=0) < 0).all()


def test_a_held_out_fold_is_judged_by_weights_that_have_not_seen_it():
    """One fold rests on another head than all the rest: weights that had seen it would know."""
    mixed = [*texts(18), *texts(6, planted=(0, 0), seed=1)]
    fitted = learn(mixed, ["a", "b", "c"] * 6 + ["d"] * 6, CPU)
    by_fold = fitted.report["by_fold"]
    assert by_fold["d"]["after"]["rank"] < 0.3 < 0.6 < by_fold["a"]["after"]["rank"]


def test_sources_that_come_after_a_token_do_not_count():
    made = texts()
    expected = learn(made, folds(), CPU)
    for text in made:
        text["sources"] = torch.cat([text["sources"], torch.tensor([50, 60])])
        text["is_sink"] = torch.cat([text["is_sink"], torch.tensor([False, False])])
        for name in ("effects", *FEATURES):
            text[name] = torch.nn.functional.pad(text[name], (0, 2), value=7.0)
    found = learn(made, folds(), CPU)
    torch.testing.assert_close(found.values, expected.values)
    assert found.report == expected.report


def test_a_head_that_looks_at_a_sink_for_nothing_loses_its_weight():
    """Head (0, 0) looks at the first source alone, which changes nothing; head (1, 2) is the effect everywhere else."""
    made = texts(noise=0.05)
    for text in made:
        text["effects"][:, 0] = 0
        for name in FEATURES:
            text[name][..., 0] = 0
            text[name][0, 0, :, 0] = 3
        text["is_sink"] = torch.arange(K) == 0
    fitted = learn(made, folds(), CPU)
    assert fitted.values.argmax() == 5
    assert fitted.values.argmin() == 0
    held_out = fitted.report["held_out"]
    assert held_out["after"]["pearson"] > 0.8 > 0 > held_out["before"]["pearson"]


def test_a_sink_counts_for_half_of_the_correlation_of_the_numbers_and_not_for_logarithms():
    """At the weights that are found, the slope of this loss, written down once more, is close to 0."""
    generator = torch.Generator().manual_seed(2)
    features, effects = torch.rand(40, K, 3, generator=generator), torch.rand(40, K, generator=generator)
    effects += features[..., 1]
    features[:, 0, 0] *= 20
    seen, fold = torch.ones(40, K, dtype=torch.bool), torch.arange(40) % 4
    sinks = (torch.arange(K) == 0).expand(40, -1)
    found, without = (minimised(features, effects, seen, x, fold, 4, (0.01,))[:, 0, -1] for x in (sinks, ~seen))

    def slope(weights):
        theta = weights.log().requires_grad_()
        scores = features @ theta.exp()
        losses = []
        for x, y in zip(scores, effects):
            numbers = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in ((x, y), (x[1:], y[1:]))]
            logarithms = torch.stack([(z[1:] + 1e-3 * z[1:].mean()).log() for z in (x, y)])
            losses.append(1 - (sum(numbers) / 2 + torch.corrcoef(logarithms)[0, 1]) / 2)
        (torch.stack(losses).mean() + 0.01 * theta.square().mean()).backward()
        return theta.grad.norm()

    assert slope(found) < 0.02 * slope(torch.ones(3)) < 0.5 * slope(without)


def test_a_head_that_never_says_anything_gets_no_weight():
    made = texts()
    for text in made:
        for name in FEATURES:
            text[name][0, 1] = 0
    assert learn(made, folds(), CPU).values[0, 1] == 0


def test_texts_that_teach_nothing_are_refused():
    made = texts(4)
    for text in made:
        text["effects"] = torch.zeros(N, K)
    with pytest.raises(InvalidInputError, match="give longer prompts"):
        learn(made, folds(4), CPU)
    with pytest.raises(InvalidInputError, match="none can be held out"):
        learn(texts(4), ["a"] * 4, CPU)


def test_pearson_is_numpys_over_the_sources_that_count():
    x, y = torch.rand(5, K, 2, dtype=torch.float64), torch.rand(5, K, 1, dtype=torch.float64)
    mask = torch.arange(K)[None] < torch.tensor([9, 8, 7, 6, 5])[:, None]
    found = pearson(x, y, mask)
    for row, count in enumerate((9, 8, 7, 6, 5)):
        for column in range(2):
            both = torch.stack([x[row, :count, column], y[row, :count, 0]])
            torch.testing.assert_close(found[row, column], torch.corrcoef(both)[0, 1])
