"""The trace: what an answer rests on in the prompt, also through its own text."""

import pytest
import torch

from gradellm_hf import InvalidInputError
from tests.support.readable import made_up

TOKENS, BORDER = list("sabcdXYZW"), 5


def sum_over_paths(rows, border, step, source):
    """Every path from a generated token down to a prompt token, one generated token at a time; slow, and in float64."""
    row = rows[step]
    through = sum(row[border + earlier] * sum_over_paths(rows, border, earlier, source) for earlier in range(step))
    return row[source] + through


@pytest.mark.parametrize("signed", [False, True])
def test_it_is_the_sum_over_all_paths_through_the_generated_text(signed):
    generator = torch.Generator().manual_seed(7)
    scores = torch.rand(4, 9, generator=generator, dtype=torch.float64).float() - (0.5 if signed else 0)
    scores = scores.tril(BORDER - 1)
    explanation = made_up(TOKENS, BORDER, attributions=scores)
    rows = scores.double().clone()
    rows[:, 0] = 0
    rows[rows.abs() < 0.2 * rows.abs().amax(-1, keepdim=True)] = 0
    rows /= rows.abs().sum(-1, keepdim=True)
    traced = explanation.trace()
    for step in range(4):
        for source in range(BORDER):
            expected = sum_over_paths(rows, BORDER, step, source)
            assert traced.attributions[step, source].item() == pytest.approx(expected.item(), abs=1e-6)
    assert not traced.attributions[:, BORDER:].any()
    if not signed:
        torch.testing.assert_close(traced.attributions.sum(-1), torch.ones(4))
    assert torch.equal(explanation.attributions, scores)


def test_a_token_that_rests_on_an_earlier_one_rests_on_what_that_rests_on():
    scores = [[9, 1, 3, 0, 0, 0], [9, 0, 0, 0, 1, 0]]
    traced = made_up(list("sabcXY"), 4, attributions=scores, layer_attributions=None).trace()
    assert traced.attributions.tolist() == [[0, 0.25, 0.75, 0, 0, 0], [0, 0.25, 0.75, 0, 0, 0]]


def test_a_row_without_scores_stays_so():
    assert not made_up(list("sabX"), 3, attributions=[[5, 0, 0, 0]], layer_attributions=None).trace().attributions.any()


def test_larger_units_are_refused():
    with pytest.raises(InvalidInputError, match="Trace the explanation of tokens"):
        made_up(TOKENS, BORDER).aggregate("word").trace()
