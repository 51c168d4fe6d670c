"""The explained scalars and their gradients, against closed forms; and what is said about wrong ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_hf import GradELLMConfig, InvalidInputError, explain_generate, explain_sequences, explain_stream
from gradellm_hf.engines.targets import contrast_ids, evaluate_target
from tests.support.tiny_models import random_text, tiny_model

R, N, V = 2, 3, 11


def logits_and_ids(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(R, N, V, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(V, (R, N), generator=generator)


def evaluate(config: GradELLMConfig, logits: Tensor, ids: Tensor, step_mask: Tensor | None = None):
    mask = torch.ones(R, N, dtype=torch.bool) if step_mask is None else step_mask
    return evaluate_target(config, logits, ids, mask, contrast_ids(config, ids, V))


def test_each_target_has_its_closed_form_value_and_gradient():
    logits, ids = logits_and_ids()
    foils = (ids + 4) % V
    chosen, foil = (torch.nn.functional.one_hot(x, V).double() for x in (ids, foils))
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    p = (probabilities * chosen).sum(-1)
    closed_forms = {
        "logit": ((logits * chosen).sum(-1), chosen),
        "log_probability": (p.log(), chosen - probabilities),
        "probability": (p, p[..., None] * (chosen - probabilities)),
        "contrast": ((logits * (chosen - foil)).sum(-1), chosen - foil),
    }
    for target, (score, gradient) in closed_forms.items():
        config = GradELLMConfig(target=target, contrast_token_ids=foils if target == "contrast" else None)
        values = evaluate(config, logits, ids)
        torch.testing.assert_close(values.scores, score)
        torch.testing.assert_close(values.gradient * values.scale[..., None], gradient)
        torch.testing.assert_close(values.probabilities, p)


def test_a_callable_target_is_differentiated_by_autograd():
    logits, ids = logits_and_ids()

    def entropy(logits: Tensor, token_ids: Tensor) -> Tensor:
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)

    values = evaluate(GradELLMConfig(target=entropy), logits, ids)
    log_p = logits.log_softmax(-1)
    expected = -log_p.exp() * (log_p + entropy(logits, ids)[..., None])
    torch.testing.assert_close(values.scores, entropy(logits, ids))
    torch.testing.assert_close(values.gradient * values.scale[..., None], expected)


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_a_target_may_weigh_all_logits_alike(engine):
    model = tiny_model("square_llama")
    ids, _ = random_text(model, 1, 4, 3)

    def explained(target: Any) -> Tensor:
        return explain_sequences(model, ids, 4, explain_config=GradELLMConfig(target=target, engine=engine)).attributions

    plain = explained(lambda logits, token_ids: logits.mean(-1))  # its gradient is one number, seen as many
    torch.testing.assert_close(plain, explained(lambda logits, token_ids: (logits * torch.ones_like(logits)).mean(-1)))
    assert plain.any()
    with pytest.raises(InvalidInputError, match="the `target` function produced NaN"):
        explained(lambda logits, token_ids: logits.sum(-1) * torch.nan)


def test_the_gradient_of_a_hopeless_probability_survives_half_precision():
    logits, ids = logits_and_ids(torch.float16)
    logits.scatter_(-1, ids[..., None], -20.0)
    values = evaluate(GradELLMConfig(target="probability"), logits, ids)
    assert values.scale.max() < 1e-8  # far below what float16 can hold
    assert torch.equal(values.gradient.half().abs().amax(-1), torch.ones(R, N).half())


def test_steps_that_are_not_explained_have_no_score_no_probability_and_no_gradient():
    logits, ids = logits_and_ids()
    step_mask = torch.tensor([[True, True, False], [True, False, False]])
    values = evaluate(GradELLMConfig(), logits, ids, step_mask)
    for tensor in (values.scores, values.probabilities, values.scale):
        assert torch.equal(tensor != 0, step_mask)


def test_foils_may_be_given_once_or_for_each_step_or_for_each_row_and_step():
    _, ids = logits_and_ids()

    def foils_of(foils) -> Tensor:
        return contrast_ids(GradELLMConfig(target="contrast", contrast_token_ids=foils), ids, V)

    assert torch.equal(foils_of(7), torch.full((R, N), 7))
    assert torch.equal(foils_of([1, 2, 3]), torch.tensor([[1, 2, 3], [1, 2, 3]]))
    assert torch.equal(foils_of([[4], [5]]), torch.tensor([[4, 4, 4], [5, 5, 5]]))
    assert torch.equal(foils_of(ids.clone()), ids)


@pytest.mark.parametrize("foils", [[1, 2], [[1, 2, 3]] * 3, torch.zeros(R, N + 1, dtype=torch.long)])
def test_foils_of_another_shape_are_refused_with_both_shapes(foils):
    _, ids = logits_and_ids()
    config = GradELLMConfig(target="contrast", contrast_token_ids=foils)
    shape = list(torch.as_tensor(foils).shape)
    with pytest.raises(InvalidInputError) as caught:
        contrast_ids(config, ids, V)
    assert f"shape {shape}" in str(caught.value)
    assert f"[R, N] = {[R, N]}" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "got"),
    [
        (lambda logits, ids: logits.sum(), "got shape []"),
        (lambda logits, ids: logits, f"got shape {[R, N, V]}"),
        (lambda logits, ids: logits.detach().sum(-1), "got a tensor that does not depend on the logits (detached"),
        (lambda logits, ids: logits.sum(-1).tolist(), "got list"),
        (lambda logits, ids: None, "got NoneType"),
    ],
    ids=["one_number", "all_logits", "detached", "list", "nothing"],
)
def test_a_callable_that_returns_something_else_is_refused_with_what_it_returned(target, got):
    logits, ids = logits_and_ids()
    with pytest.raises(InvalidInputError) as caught:
        evaluate(GradELLMConfig(target=target), logits, ids)
    assert f"shape [R, N] = {[R, N]} that depends on the logits differentiably" in str(caught.value)
    assert got in str(caught.value)


def test_wrong_targets_are_refused_by_the_public_functions_and_leave_the_generation_on_the_error():
    model = tiny_model("llama", dtype=torch.float32)
    token_ids, _ = random_text(model, 2, 5, 3)
    with pytest.raises(InvalidInputError, match=r"shape \[R, N\]"):
        explain_sequences(model, token_ids, 5, explain_config=GradELLMConfig(target=lambda logits, ids: logits))
    config = GradELLMConfig(target="contrast", contrast_token_ids=[[1, 2, 3, 4]] * 5)
    with pytest.raises(InvalidInputError, match=r"`contrast_token_ids` has shape \[5, 4\]") as caught:
        explain_generate(model, token_ids, explain_config=config, max_new_tokens=4, do_sample=False)
    assert torch.equal(caught.value.generated.sequences, model.generate(token_ids, max_new_tokens=4, do_sample=False))


def test_a_foil_beyond_the_vocabulary_is_refused():
    model = tiny_model("llama", dtype=torch.float32)
    token_ids, _ = random_text(model, 2, 5, 3)
    config = GradELLMConfig(target="contrast", contrast_token_ids=model.config.vocab_size)
    with pytest.raises(InvalidInputError, match="contrast_token_ids"):
        explain_sequences(model, token_ids, 5, explain_config=config)


def test_targets_that_need_each_other_are_checked_on_construction():
    with pytest.raises(InvalidInputError, match="belong together"):
        GradELLMConfig(target="contrast")
    with pytest.raises(InvalidInputError, match="belong together"):
        GradELLMConfig(contrast_token_ids=3)
    with pytest.raises(InvalidInputError, match=r"`target` must be 'logit'.* or a callable .*, got 'logits'"):
        GradELLMConfig(target="logits")


@pytest.mark.parametrize(
    "foils", [[[1], [2, 3]], True, [True], "token", b"\x01", -1, [3, -1], [0.5, 1.0], 2.0, float("nan"), 1j, {}], ids=repr
)
def test_foils_that_cannot_be_read_as_token_ids_are_refused_on_construction(foils):
    with pytest.raises(InvalidInputError, match=r"`contrast_token_ids` must be token ids: .* got "):
        GradELLMConfig(target="contrast", contrast_token_ids=foils)


def test_no_foils_are_refused_where_there_are_steps():
    _, ids = logits_and_ids()
    with pytest.raises(InvalidInputError, match=r"`contrast_token_ids` has shape \[0\]; expected token ids from 0 to"):
        contrast_ids(GradELLMConfig(target="contrast", contrast_token_ids=[]), ids, V)


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_a_foil_that_is_the_chosen_token_is_refused_by_step_and_token(engine):
    model = tiny_model("llama", dtype=torch.float32)
    token_ids, _ = random_text(model, 2, 5, 3)
    foils = (token_ids[:, 5:] + 1) % model.config.vocab_size
    foils[1, 2] = token_ids[1, 7]
    config = GradELLMConfig(target="contrast", contrast_token_ids=foils, engine=engine)
    message = rf"The foil of step 2 in row 1 is the chosen token itself \(id {token_ids[1, 7]}\)"
    with pytest.raises(InvalidInputError, match=message):
        explain_sequences(model, token_ids, 5, explain_config=config)
    ends_before = torch.ones_like(token_ids)
    ends_before[1, 7] = 0
    out = explain_sequences(model, token_ids, 5, ends_before, explain_config=config)
    assert (out.attributions.amax(-1) > 0).tolist() == [[True] * 3, [True, True, False]]


def test_a_foil_that_the_model_chooses_leaves_the_text_to_be_explained_with_others():
    model = tiny_model("llama", dtype=torch.float32)
    prompt, _ = random_text(model, 1, 5, 0)
    written = model.generate(prompt, max_new_tokens=4, do_sample=False)
    config = GradELLMConfig(target="contrast", contrast_token_ids=int(written[0, 6]))
    step = written[0, 5:].tolist().index(int(written[0, 6]))
    with pytest.raises(InvalidInputError, match=f"The foil of step {step} in row 0 is the chosen token itself") as caught:
        explain_generate(model, prompt, explain_config=config, max_new_tokens=4, do_sample=False)
    assert torch.equal(caught.value.generated.sequences, written)
    others = GradELLMConfig(target="contrast", contrast_token_ids=(written[:, 5:] + 1) % model.config.vocab_size)
    assert (explain_sequences(model, written, 5, explain_config=others).attributions.amax(-1) > 0).all()
    steps = explain_stream(model, prompt, explain_config=config, max_new_tokens=4, do_sample=False)
    assert [next(steps).step for _ in range(step)] == list(range(step))
    with pytest.raises(InvalidInputError, match=f"The foil of step {step} in row 0 is the chosen token itself"):
        next(steps)
