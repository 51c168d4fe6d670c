"""ContextCite: its LASSO against scikit-learn's, its scores against a loop over ablated texts."""

import pytest
import torch
from sklearn.linear_model import Lasso
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gradellm_hf import InvalidInputError
from gradellm_hf.methods import context_cite
from gradellm_hf.methods.surrogate import lasso, logit
from tests.support.small_llama import padded_prompts, random_ids, small_llama


@pytest.mark.parametrize(("count", "width"), [(60, 7), (32, 50)])
def test_lasso_is_that_of_scikit_learn(count, width):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(count, width, generator=generator) < 0.5).double()
    y = x[:, :3] @ torch.randn(3, 4, dtype=torch.float64, generator=generator)
    y += 0.3 * torch.randn(count, 4, dtype=torch.float64, generator=generator)
    x, y = x - x.mean(0), y - y.mean(0)
    for alpha in (0.01, 0.1):
        found = lasso(x, y, alpha)
        for n in range(4):
            expected = Lasso(alpha=alpha, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(x, y[:, n])
            torch.testing.assert_close(found[:, n], torch.tensor(expected.coef_), rtol=1e-4, atol=1e-5)


def test_the_logit_is_finite_at_both_ends():
    p = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(logit(p.log())[1], torch.logit(p[1]))
    assert logit(p.log())[2] > 700
    assert logit(torch.tensor(-900.0).double()) == -900


@pytest.mark.parametrize("removal", ["drop", "mask"])
def test_scores_are_the_coefficients_that_scikit_learn_finds_for_ablated_texts(removal):
    model, K = small_llama(), 20
    prompts = padded_prompts((6, 4))
    ids = torch.cat([prompts["input_ids"], random_ids(2, 2, 8)], dim=1)
    sources = torch.tensor([[0, 1, 1, 2, 2, 0], [0, 0, 1, 2, 2, 1]])
    options = {"sources": sources, "num_ablations": K, "removal": removal, "alpha": 0.001}
    scores = context_cite(model, ids, 6, prompts["attention_mask"], **options)
    masks = torch.rand(2, K, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    for row, padding in enumerate((0, 2)):
        for step in range(2):
            values = []
            for mask in masks[row]:
                where = [i for i in range(padding, 6 + step) if i >= 5 or mask[sources[row, i]]]
                positions = [i - padding for i in where] if removal == "mask" else range(len(where))
                inputs = {"input_ids": ids[row, where][None], "position_ids": torch.tensor([list(positions)])}
                with torch.no_grad():
                    p = model(**inputs).logits[0, -1].double().softmax(-1)[ids[row, 6 + step]]
                values.append(torch.logit(p).item())
            present = sorted(set(sources[row, padding:5].tolist()))
            model_of = make_pipeline(StandardScaler(), Lasso(alpha=0.001, tol=1e-9))
            model_of.fit(masks[row][:, present].double(), values)
            coefficients = model_of[-1].coef_ / model_of[0].scale_
            for source, coefficient in zip(present, coefficients):
                tokens = [i for i in range(padding, 5) if sources[row, i] == source]
                for i in tokens:
                    assert scores[row, step, i].item() == pytest.approx(coefficient / len(tokens), rel=1e-3, abs=1e-5)
            assert not scores[row, step, 5:].any()


def test_bad_input_is_refused():
    model, ids = small_llama(), random_ids(1, 8)
    for options, message in (
        ({"num_ablations": 1}, "`num_ablations` must be an int of at least 2"),
        ({"alpha": 0}, "`alpha` must be a number above 0"),
        ({"removal": "x"}, "`removal` must be"),
        ({"sources": torch.zeros(3, dtype=torch.long)}, "`sources` must be"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            context_cite(model, ids, 6, **options)
