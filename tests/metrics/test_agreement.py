"""Agreement with human rationales, against scikit-learn and by hand."""

import pytest
import torch

from gradellm_hf import InvalidInputError
from gradellm_hf.metrics import auc, average_precision, token_labels


def test_auc_and_average_precision_are_those_of_scikit_learn_with_ties_and_under_a_mask():
    from sklearn.metrics import average_precision_score, roc_auc_score

    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(7, (5, 20), generator=generator) - 3.0
    labels = torch.rand(5, 20, generator=generator) < 0.4
    mask = torch.rand(5, 20, generator=generator) < 0.8
    for chosen in (None, mask):
        areas, precisions = auc(scores, labels, chosen), average_precision(scores, labels, chosen)
        for row in range(5):
            kept = torch.ones(20, dtype=torch.bool) if chosen is None else chosen[row]
            assert areas[row].item() == pytest.approx(roc_auc_score(labels[row, kept], scores[row, kept]))
            assert precisions[row].item() == pytest.approx(average_precision_score(labels[row, kept], scores[row, kept]))


def test_marked_tokens_on_top_agree_fully_and_constant_scores_not_at_all():
    labels = torch.tensor([True, False, False, True])
    assert auc(torch.tensor([3.0, 1, 0, 2]), labels) == 1
    assert average_precision(torch.tensor([3.0, 1, 0, 2]), labels) == 1
    assert auc(torch.tensor([0.0, 1, 3, 0.5]), labels) == 0
    assert auc(torch.ones(4), labels) == 0.5
    assert average_precision(torch.ones(4), labels) == 0.5
    assert auc(torch.rand(4), torch.zeros(4)).isnan()
    assert average_precision(torch.rand(4), torch.zeros(4)).isnan()


def test_labels_of_another_length_are_refused():
    with pytest.raises(InvalidInputError, match="must broadcast"):
        auc(torch.rand(4), torch.ones(3))


def test_spans_of_characters_mark_the_tokens_they_touch():
    tokens = ["The", " capital", " of", " Fr", "ance", " \U0001f600", "", "\n", "."]
    text = "".join(tokens)
    at = text.index

    def marked(*spans):
        return [i for i, label in enumerate(token_labels(tokens, spans)) if label]

    assert marked((at("capital"), at("capital") + 7)) == [1]
    assert marked((at(" of"), at("of"))) == []  # the space alone
    assert marked((at("France"), at("France") + 6)) == [3, 4]
    assert marked((at("r"), at("r") + 1)) == [3]
    assert marked((at("\U0001f600"), at("\U0001f600") + 1)) == [5, 6]  # a character of two tokens
    assert marked((at("\n"), at("\n") + 1)) == [7]  # white space that is a token
    assert marked((0, 3), (at("."), at(".") + 1)) == [0, 8]
    assert marked((0, len(text))) == list(range(9))
    assert marked() == []


@pytest.mark.parametrize("span", [(0, 0), (3, 2), (-1, 2), (2, 5)])
def test_spans_outside_of_the_text_are_refused(span):
    with pytest.raises(InvalidInputError, match="empty or outside"):
        token_labels(["ab", "cd"], [span])
