"""Two computations of the same logits are compared by what they say about tokens that are possible."""

import math

import pytest
import torch

from gradellm_hf.architecture.tolerances import logits_difference, logits_differences, relative_difference

INF = math.inf


def test_a_difference_is_relative_to_the_largest_magnitude_that_was_expected():
    assert relative_difference(torch.tensor([1.0, -3.0]), torch.tensor([1.0, -4.0])) == 0.25
    assert logits_difference(torch.tensor([[1.0, -3.0], [0, 2]]), torch.tensor([[1.0, -4.0], [0, 2]])) == 0.25


def test_logits_that_are_equal_do_not_differ_also_where_all_of_them_are_zero():
    for logits in (torch.tensor([[0.5, 2.0]]), torch.zeros(2, 3), torch.zeros(2, 0, 3), torch.tensor([[-INF, 0.0]])):
        assert logits_difference(logits.clone(), logits) == relative_difference(torch.zeros(3), torch.zeros(3)) == 0


def test_anything_is_infinitely_more_than_nothing():
    assert logits_difference(torch.tensor([[0.0, 1e-3]]), torch.zeros(1, 2)) == INF


@pytest.mark.parametrize("suppressed", [-INF, torch.finfo(torch.float32).min, -1e9, -1e4])
def test_a_suppressed_token_neither_counts_nor_hides_what_the_others_differ_by(suppressed):
    expected = torch.tensor([[2.0, suppressed, 1.0], [suppressed, 4.0, suppressed]])
    assert logits_difference(expected.clone(), expected) == 0
    assert logits_difference(expected + torch.tensor([0.5, 0, 0]), expected) == 0.125


def test_it_does_not_matter_by_what_a_token_is_suppressed():
    assert logits_difference(torch.tensor([[2.0, -INF]]), torch.tensor([[2.0, -1e9]])) == 0


@pytest.mark.parametrize("values", [([2.0, -INF], [2.0, 1.0]), ([2.0, 1.0], [2.0, -INF])])
def test_a_token_that_is_suppressed_once_only_differs_without_limit(values):
    actual, expected = (torch.tensor([row]) for row in values)
    assert logits_difference(actual, expected) == INF


@pytest.mark.parametrize("row", [[math.nan, 1.0], [INF, 1.0], [-INF, -INF]])
def test_logits_that_mean_nothing_are_within_no_tolerance(row):
    logits = torch.tensor([row])
    assert math.isnan(logits_difference(logits, logits))
    assert not logits_difference(logits, torch.tensor([[0.0, 1.0]])) <= 1e30


def test_dtypes_are_compared_at_the_higher_precision():
    assert logits_difference(torch.tensor([[1.0, 2 + 1e-9]], dtype=torch.float64), torch.tensor([[1.0, 2.0]])) == pytest.approx(
        5e-10
    )
    assert logits_difference(torch.tensor([[1.0, 256.0]], dtype=torch.bfloat16), torch.tensor([[1.0, 257.0]])) == pytest.approx(
        1 / 257
    )


def test_each_vector_of_logits_may_be_compared_by_itself():
    expected = torch.tensor([[2.0, -INF, 1.0], [-1e9, 4.0, 0.0], [0, 0, 0], [0, 0, 0], [1, 1, -INF], [math.nan, 1, 1]])
    actual = torch.tensor([[1.5, -INF, 1.0], [-INF, 3.0, 0.0], [0, 0, 0], [0, 1e-3, 0], [1, 1, 1], [1, 1, 1]])
    differences = logits_differences(actual, expected)
    assert differences[:5].tolist() == [0.25, 0.25, 0, INF, INF]
    assert differences[5].isnan()
