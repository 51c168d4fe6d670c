"""Reciprocal rank and recall of known sources: by hand, and as means over all orders of equal scores."""

import itertools

import pytest
import torch

from gradellm_hf import InvalidInputError
from gradellm_hf.metrics import recall_at_k, reciprocal_rank


def test_the_reciprocal_rank_is_that_of_the_best_right_source():
    scores = torch.tensor([[0.1, 0.9, 0.4, 0.2], [0.1, 0.9, 0.4, 0.2]])
    right = torch.tensor([[0, 0, 0, 1], [1, 0, 1, 0]])
    assert reciprocal_rank(scores, right).tolist() == pytest.approx([1 / 3, 1 / 2])
    mask = torch.tensor([1, 0, 1, 1])  # the highest score does not count
    assert reciprocal_rank(scores, right, mask).tolist() == pytest.approx([1 / 2, 1])


def test_equal_scores_share_their_ranks():
    assert reciprocal_rank(torch.tensor([2.0, 1, 1, 1]), torch.tensor([0, 0, 1, 0])).item() == pytest.approx(1 / 3)
    assert reciprocal_rank(torch.zeros(5), torch.tensor([0, 0, 1, 0, 0])).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_recall_is_the_mean_over_all_orders_of_equal_scores(k):
    scores, right = torch.tensor([1.0, 0, 1, 2, 1]), torch.tensor([True, False, True, False, False])
    shares = []
    for order in itertools.permutations(range(5)):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            shares.append(sum(bool(right[i]) for i in order[:k]) / 2)
    assert recall_at_k(scores, right, k=k).item() == pytest.approx(sum(shares) / len(shares))


def test_masked_sources_neither_count_nor_are_in_the_way():
    scores, right = torch.tensor([9.0, 2, 1]), torch.tensor([1, 1, 0])
    assert recall_at_k(scores, right, k=1).item() == 0.5
    assert recall_at_k(scores, right, torch.tensor([0, 1, 1]), k=1).item() == 1


def test_without_a_right_source_there_is_no_value():
    assert reciprocal_rank(torch.rand(3), torch.zeros(3)).isnan()
    assert recall_at_k(torch.rand(3), torch.tensor([1, 0, 0]), torch.tensor([0, 1, 1]), k=1).isnan()


def test_bad_input_is_refused():
    with pytest.raises(InvalidInputError, match="NaN"):
        reciprocal_rank(torch.tensor([1.0, torch.nan]), torch.tensor([1, 0]))
    with pytest.raises(InvalidInputError, match="`k` must be an int of at least 1"):
        recall_at_k(torch.rand(2), torch.tensor([1, 0]), k=0)
    with pytest.raises(InvalidInputError, match="0 and 1"):
        recall_at_k(torch.rand(2), torch.tensor([1, 2]), k=1)
