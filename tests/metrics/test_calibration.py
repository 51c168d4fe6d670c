"""Calibration to a fixed expected retention, ranks and bootstrap, against closed forms and other implementations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradellm_hf import InvalidInputError
from gradellm_hf.metrics import bootstrap, calibrate, normalised_area, spearman

SCORES = st.lists(st.sampled_from([0.0, 0.0, 1e-6, 0.1, 0.5, 0.5, 1.0, 3.0, 250.0, -2.0]), min_size=1, max_size=12)
PI = st.floats(0, 1)


def by_bisection(scores, pi):
    """`min(1, s a)` with mean `pi`, the slow way; None if no scale reaches it."""
    a = scores.clamp_min(0)
    low, high = 0.0, 1e12
    if (a > 0).double().mean() < pi:
        return None
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (middle * a).clamp(max=1).mean() < pi else (low, middle)
    return (high * a).clamp(max=1)


@given(SCORES, PI)
def test_the_scale_is_the_one_that_bisection_finds(scores, pi):
    a = torch.tensor(scores, dtype=torch.float64)
    expected = by_bisection(a, pi)
    if expected is not None:
        torch.testing.assert_close(calibrate(a, pi), expected, rtol=1e-6, atol=1e-9)


@given(SCORES, PI, st.sampled_from(["scale", "power", "rank"]))
def test_the_mean_is_pi_and_the_order_that_of_the_scores(scores, pi, method):
    a = torch.tensor(scores, dtype=torch.float64)
    r = calibrate(a, pi, method=method)
    assert r.mean().item() == pytest.approx(pi, abs=1e-9)
    assert r.min() >= 0
    assert r.max() <= 1
    ordered = r[a.clamp_min(0).argsort()]
    assert (ordered.diff() >= -1e-12).all()
    same = a[:, None] == a[None]
    torch.testing.assert_close(r[:, None].expand_as(same)[same], r[None].expand_as(same)[same], rtol=0, atol=0)


@given(SCORES, PI, st.sampled_from(["scale", "power", "rank"]), st.sampled_from([0.3, 7.0, 1e-3]))
def test_the_size_of_the_scores_does_not_matter(scores, pi, method, factor):
    a = torch.tensor(scores, dtype=torch.float64)
    torch.testing.assert_close(calibrate(factor * a, pi, method=method), calibrate(a, pi, method=method), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("scores", "pi", "expected"),
    [
        ([1, 2, 3, 4], 0.25, [0.1, 0.2, 0.3, 0.4]),
        ([1, 1, 2, 6], 0.5, [0.25, 0.25, 0.5, 1]),  # the last is cut off at 1
        ([0, 0, 5, 1], 0.75, [0.5, 0.5, 1, 1]),  # too few are positive
        ([0, 0, 5, -1], 0.5, [1 / 3, 1 / 3, 1, 1 / 3]),  # negative ones count as zeros
        ([0, 0, 0], 0.4, [0.4, 0.4, 0.4]),
        ([3, 3, 3], 0.4, [0.4, 0.4, 0.4]),
        ([0, 1, 9], 0, [0, 0, 0]),
        ([0, 1, 9], 1, [1, 1, 1]),
        ([0, 0], 0, [0, 0]),
        ([0, 0], 1, [1, 1]),
    ],
)
def test_retention_worked_out_by_hand(scores, pi, expected):
    r = calibrate(torch.tensor(scores).double(), pi)
    torch.testing.assert_close(r, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_other_calibrations_worked_out_by_hand():
    a = torch.tensor([1.0, 4.0, 16.0])
    # (1/16)^g + (1/4)^g + 1 = 1.75 at g = 1/2
    torch.testing.assert_close(calibrate(a, 1.75 / 3, method="power"), torch.tensor([0.25, 0.5, 1]).double())
    torch.testing.assert_close(calibrate(a, 1 / 3, method="rank"), torch.tensor([1, 2, 3]).double() / 6)
    torch.testing.assert_close(
        calibrate(torch.tensor([2.0, 2, 1]), 0.5, method="power"), torch.tensor([0.75, 0.75, 0]).double()
    )


def test_masked_positions_get_nothing_and_rows_are_independent():
    a = torch.tensor([[9.0, 1, 2, 3, 4], [0, 0, 5, 1, 8]])
    mask = torch.tensor([[False, True, True, True, True], [True, True, True, True, False]])
    expected = torch.tensor([[0, 0.1, 0.2, 0.3, 0.4], [0, 0, 5 / 6, 1 / 6, 0]]).double()
    torch.testing.assert_close(calibrate(a, 0.25, mask), expected)


@pytest.mark.parametrize(("pi", "options"), [(1.2, {}), (-0.1, {}), (float("nan"), {}), (0.5, {"method": "softmax"})])
def test_bad_shares_and_methods_are_refused(pi, options):
    with pytest.raises(InvalidInputError, match=r"must be 'scale' or|between 0 and 1"):
        calibrate(torch.rand(3), pi, **options)
    with pytest.raises(InvalidInputError, match="not finite"):
        calibrate(torch.tensor([1.0, torch.nan]), 0.5)


def test_spearman_is_that_of_scipy_with_ties_and_under_a_mask():
    from scipy.stats import spearmanr

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(6, (4, 15), generator=generator).double() for _ in range(2))
    mask = torch.rand(4, 15, generator=generator) < 0.7
    found = spearman(x, y, mask)
    for row in range(4):
        expected = spearmanr(x[row, mask[row]], y[row, mask[row]]).statistic
        assert found[row].item() == pytest.approx(expected, abs=1e-12)
    assert spearman(torch.ones(3), torch.arange(3)).isnan()


def test_the_normalised_area_of_a_straight_line_is_its_height_in_the_middle():
    points = torch.tensor([0.1, 0.2, 0.5, 0.9])
    assert normalised_area(3 * points + 1, points).item() == pytest.approx(2.5)
    for bad in ([0.1], [0.1, 0.1, 0.3, 0.4], [0.1, 0.2]):
        with pytest.raises(InvalidInputError, match="ascending"):
            normalised_area(points, bad)


def test_bootstrap_intervals_are_those_of_the_normal_distribution_for_many_prompts():
    values = torch.randn(2, 2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[1] = 5 + 3 * values[0]
    mean, low, high = bootstrap(values, num_resamples=4000)
    error = 1.96 * values.std(-1) / 2000**0.5
    torch.testing.assert_close(mean, values.mean(-1))
    torch.testing.assert_close(high - low, 2 * error, rtol=0.06, atol=0)
    torch.testing.assert_close(5 + 3 * low[0], low[1])  # both saw the same resamples


def test_an_interval_is_that_of_means_over_prompts_drawn_with_replacement():
    values = torch.randn(3, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values[0, 1, :5], values[1, 0] = torch.nan, torch.nan
    drawn = torch.randint(7, (40_000, 7), generator=torch.Generator().manual_seed(0))
    means = torch.stack([values[..., prompts].nanmean(-1) for prompts in drawn], dim=-1)
    ends = torch.nanquantile(means, torch.tensor([0.05, 0.95], dtype=torch.float64), dim=-1)
    found = bootstrap(values, confidence=0.9, num_resamples=40_000)
    for actual, expected in zip(found, (values.nanmean(-1), *ends)):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14, equal_nan=True)


def test_bootstrap_repeats_with_its_generator_skips_what_is_undefined_and_refuses_nonsense():
    values = torch.rand(30, generator=torch.Generator().manual_seed(2))
    first, second = (bootstrap(values, generator=torch.Generator().manual_seed(s), num_resamples=50) for s in (3, 3))
    assert first.low == second.low
    assert bootstrap(torch.tensor([1.0, torch.nan, 1.0]), num_resamples=50).high == 1
    assert bootstrap(values, confidence=0.5).high < bootstrap(values, confidence=0.99).high
    for options in ({"confidence": 1.0}, {"num_resamples": 0}):
        with pytest.raises(InvalidInputError, match="must be a"):
            bootstrap(values, **options)
    with pytest.raises(InvalidInputError, match="one number per prompt"):
        bootstrap(values[:0])
