"""Each method against slow, independent code or an answer in closed form; and what they have in common."""

import sys
from functools import partial

import pytest
import torch
from torch import nn

from gradellm_hf import GradELLMConfig, GradELLMError, InvalidInputError, UnsupportedArchitectureError, explain_sequences
from gradellm_hf.architecture.plain_attention import attention_implementation
from gradellm_hf.methods import (
    context_cite,
    deep_lift,
    get_method,
    grad_ellm,
    input_x_gradient,
    inseq_method,
    integrated_gradients,
    lime,
    method_names,
    occlusion,
    random,
    register_method,
    saliency,
)
from tests.support.small_llama import padded_prompts, random_ids, small_llama
from tests.support.tiny_models import float64_islands, tiny_model
from tests.support.toy_models import BagOfEmbeddings

P, N = 6, 3
QUICK = {
    "integrated_gradients": partial(integrated_gradients, num_points=4),
    "lime": partial(lime, num_samples=20),
    "context_cite": partial(context_cite, alpha=1e-4),  # or few scores are not 0
}


@pytest.fixture(scope="module")
def llama():
    return tiny_model("square_llama", attn_implementation="eager")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(53, (2, P + N), generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def _float64():
    with float64_islands():
        yield


def logits_of(model, embeddings):
    with torch.no_grad():
        return model(inputs_embeds=embeddings, attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long)).logits[:, -1]


def bag(activation=None):
    generator = torch.Generator().manual_seed(1)
    embeddings, weights = (torch.randn(11, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return BagOfEmbeddings(embeddings, weights, activation)


def targets(model, ids):
    """`f_n` of each generated token, and the embeddings of what is before it."""
    for step in range(ids.shape[1] - P):
        yield step, model.get_input_embeddings()(ids[:, : P + step]).detach(), ids[:, P + step]


def hooks_and_attributes(module):
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return [list(h) for h in hooks], set(vars(module))


# What they have in common


@pytest.mark.parametrize("name", method_names())
def test_scores_are_float32_and_zero_where_the_model_saw_nothing(name):
    model = small_llama(hidden_size=60)
    prompts = padded_prompts((7, 4))
    ids = torch.cat([prompts["input_ids"], random_ids(2, 3, 8)], dim=1)
    mask = torch.cat([prompts["attention_mask"], torch.tensor([[1, 1, 1], [1, 1, 0]])], dim=1)
    scores = QUICK.get(name, get_method(name))(model, ids, 7, mask)
    assert scores.shape == (2, 3, 10)
    assert not scores.requires_grad
    seen = (torch.arange(10) < 7 + torch.arange(3)[:, None]) & mask[:, None].bool() & mask[:, 7:, None].bool()
    assert not scores[~seen].any()
    assert (scores[seen] != 0).double().mean() > 0.4  # the relu leaves some out


@pytest.mark.parametrize("name", [name for name in method_names() if name not in ("random", "lime", "context_cite")])
def test_padding_and_the_rest_of_the_batch_change_nothing(name):
    model = small_llama(hidden_size=60)
    prompts = padded_prompts((7, 4))
    ids = torch.cat([prompts["input_ids"], random_ids(2, 3, 8)], dim=1)
    method = QUICK.get(name, get_method(name))
    together = method(model, ids, 7, prompts["attention_mask"])
    alone = method(model, ids[1:, 3:], 4, None)
    torch.testing.assert_close(together[1:, :, 3:], alone, rtol=2e-3, atol=2e-3 * alone.abs().max().item())


@pytest.mark.parametrize("name", method_names())
def test_the_model_is_left_as_it_was(name):
    model = small_llama(hidden_size=60)
    with attention_implementation(model, "eager"):  # Transformers leaves hooks of its own when first asked for attentions
        model(random_ids(1, 7), output_attentions=True)
    before = [hooks_and_attributes(module) for module in model.modules()]
    QUICK.get(name, get_method(name))(model, random_ids(1, 7), 5, None)
    assert model.config._attn_implementation == "sdpa"
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert [hooks_and_attributes(module) for module in model.modules()] == before


def test_methods_are_found_by_name_and_names_are_taken_once():
    with pytest.raises(InvalidInputError, match=r"no method named 'gradcam'; there are \['grad_ellm'"):
        get_method("gradcam")
    with pytest.raises(InvalidInputError, match="registered already"):
        register_method("saliency", saliency)
    assert get_method("saliency") is saliency
    assert len(method_names()) >= 12


def test_unknown_options_are_refused(llama, ids):
    for method, options in [(saliency, {"target": "loss"}), (occlusion, {"measure": "kl"}), (lime, {"measure": "hellinger"})]:
        with pytest.raises(InvalidInputError, match=r"must be '.*' or .*, got"):
            method(llama, ids, P, **options)


# One by one


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("grad_ellm", GradELLMConfig()),
        ("grad_ellm_layers", GradELLMConfig(positive_part="layer")),
        ("grad_ellm_loosened", GradELLMConfig(spatial="loosened")),
        ("grad_ellm_paper", GradELLMConfig.paper()),
    ],
)
def test_grad_ellm_is_what_explain_sequences_gives(llama, ids, name, config):
    expected = explain_sequences(llama, ids, P, explain_config=config).attributions
    assert torch.equal(get_method(name)(llama, ids, P, None), expected)
    assert torch.equal(grad_ellm(llama, ids, P, explain_config=config), expected)


def test_attention_and_rollout_are_those_of_a_loop_over_steps(llama, ids):
    for step in range(N):
        with torch.no_grad():
            layers = llama(input_ids=ids[:, : P + step], output_attentions=True).attentions
        maps = [layer.mean(1) for layer in layers]
        rollout = None
        for attention in maps:
            mixed = 0.5 * attention + 0.5 * torch.eye(P + step, dtype=torch.float64)
            rollout = mixed if rollout is None else torch.einsum("rij,rjk->rik", mixed, rollout)
        expected = {
            "attention_last": maps[-1],
            "attention_mean": sum(maps) / len(maps),
            "attention_rollout": rollout,
        }
        for name, value in expected.items():
            scores = get_method(name)(llama, ids, P, None)[:, step, : P + step]
            torch.testing.assert_close(scores, value[:, -1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("target", ["logit", "log_probability", "probability"])
def test_saliency_and_input_x_gradient_agree_with_finite_differences(llama, ids, target):
    function = {"logit": lambda x: x, "log_probability": lambda x: x.log_softmax(-1), "probability": lambda x: x.softmax(-1)}
    norms, products = (method(llama, ids, P, target=target) for method in (saliency, input_x_gradient))
    for step, x, token in targets(llama, ids):
        if step != 1:
            continue
        width = 1e-5
        offsets = width * torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *x[0].shape)
        for row in range(2):
            up, down = (function[target](logits_of(llama, x[row] + s * offsets))[:, token[row]] for s in (1, -1))
            gradient = ((up - down) / (2 * width)).reshape(x[0].shape)
            torch.testing.assert_close(norms[row, step, : P + step], gradient.norm(dim=-1), rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(products[row, step, : P + step], (gradient * x[row]).sum(-1), rtol=1e-5, atol=1e-8)


def test_integrated_gradients_add_up_to_the_change_of_the_target(ids):
    model, short = tiny_model("square_llama", rms_norm_eps=1.0), ids[:, : P + 2]  # smooth also for small embeddings
    scores = integrated_gradients(model, short, P, target="probability", num_points=60)
    for step, x, token in targets(model, short):
        change = (logits_of(model, x).softmax(-1) - logits_of(model, 0 * x).softmax(-1)).gather(1, token[:, None])[:, 0]
        torch.testing.assert_close(scores[:, step].sum(-1), change, rtol=0, atol=1e-3 * change.abs().max().item())


@pytest.mark.parametrize("method", [input_x_gradient, integrated_gradients, deep_lift])
def test_in_a_linear_model_each_method_finds_the_contribution_of_each_token(method):
    model, ids = bag(), torch.randint(11, (3, P + N), generator=torch.Generator().manual_seed(2))
    scores = method(model, ids, P)
    for step, x, token in targets(model, ids):
        expected = (x * model.head.weight[token][:, None]).sum(-1)
        torch.testing.assert_close(scores[:, step, : P + step], expected.detach())


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Tanh()], ids=str)
def test_deep_lift_adds_up_through_an_activation_where_the_gradient_does_not(activation):
    model, ids = bag(activation), torch.randint(11, (3, P + N), generator=torch.Generator().manual_seed(2))
    scores, products = deep_lift(model, ids, P), input_x_gradient(model, ids, P)
    for step, x, token in targets(model, ids):
        change = (logits_of(model, x) - logits_of(model, 0 * x)).gather(1, token[:, None])[:, 0]
        torch.testing.assert_close(scores[:, step].sum(-1), change)
        assert (products[:, step].sum(-1) - change).abs().max() > 1e-2


@pytest.mark.parametrize("measure", ["log_probability", "probability", "hellinger"])
def test_occlusion_is_a_loop_over_positions(llama, ids, measure):
    scores = occlusion(llama, ids, P, measure=measure, batch_size=5)
    for step, x, token in targets(llama, ids):
        before = logits_of(llama, x).softmax(-1)
        for position in range(P + step):
            without = x.clone()
            without[:, position] = 0
            after = logits_of(llama, without).softmax(-1)
            if measure == "hellinger":
                expected = (0.5 * (before.sqrt() - after.sqrt()).square().sum(-1)).sqrt()
            else:
                a, b = (p.gather(1, token[:, None])[:, 0] for p in (before, after))
                expected = a.log() - b.log() if measure == "log_probability" else a - b
            torch.testing.assert_close(scores[:, step, position], expected)


def test_lime_finds_the_coefficients_of_what_is_linear_and_is_the_ridge_regression_of_scikit_learn():
    from sklearn.linear_model import Ridge

    # Two tokens: the log-odds are linear in what is kept, and so is the log-probability of a token that is very unlikely.
    weights = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    effects = torch.tensor([-30.0, -1.0, -2.0, -3.0, -5.0], dtype=torch.float64)
    model = BagOfEmbeddings(effects[:, None], weights.repeat(3, 1)[:5])
    model.head = nn.Linear(1, 5, bias=False).double().requires_grad_(False)
    model.head.weight.copy_(torch.tensor([[1.0], [0.0], [-9.0], [-9.0], [-9.0]]))
    ids = torch.tensor([[1, 2, 3, 4, 0]])
    scores = lime(model, ids, 4, num_samples=60, ridge=2.0, kernel_width=0.4)

    kept = torch.cat([torch.ones(1, 4), torch.rand(60, 4, generator=torch.Generator().manual_seed(0)).lt(0.5).float()]).double()
    values = logits_of(model, model.embedding(ids[:, :4]) * kept[..., None]).log_softmax(-1)[:, 0]
    distance = 1 - kept.sum(-1) / (2 * kept.sum(-1).sqrt()).clamp_min(1e-8)
    weight = torch.exp(-(distance**2) / 0.4**2)
    ridge = Ridge(alpha=2.0).fit(kept, values, sample_weight=weight / weight.sum() * len(kept))
    torch.testing.assert_close(scores[0, 0, :4], torch.tensor(ridge.coef_))

    values_are_linear = lime(bag_of_odds(), torch.tensor([[1, 2, 3, 4, 0]]), 4, ridge=1e-9)
    torch.testing.assert_close(
        values_are_linear[0, 0, :4], -torch.tensor([11.0, 12.0, 13.0, 14.0]).double(), rtol=1e-3, atol=1e-2
    )


def bag_of_odds():
    """Token `i` takes about `10 + i` from the log-probability of token 0, whatever else is there."""
    effects = torch.tensor([0.0, 11.0, 12.0, 13.0, 14.0], dtype=torch.float64)
    return BagOfEmbeddings(
        torch.stack([effects, torch.full((5,), 0.0, dtype=torch.float64)], 1),
        torch.tensor([[-1.0, 0], [0, 0], [-50, 0], [-50, 0], [-50, 0]], dtype=torch.float64),
    )


def test_random_scores_follow_their_generator(llama, ids):
    first, again, other = (random(llama, ids, P, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_models_that_return_no_attention_weights_are_refused():
    with pytest.raises(UnsupportedArchitectureError, match="does not return the attention weights"):
        get_method("attention_mean")(bag(), torch.tensor([[1, 2, 3]]), 2, None)


# Through other packages


@pytest.mark.parametrize("method", [integrated_gradients, deep_lift])
def test_without_captum_the_error_has_the_command_that_installs_it(llama, ids, monkeypatch, method):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(GradELLMError, match="pip install captum"):
        method(llama, ids, P)


def test_without_inseq_the_error_has_the_command_that_installs_it(llama, ids, monkeypatch):
    monkeypatch.setitem(sys.modules, "inseq", None)
    with pytest.raises(GradELLMError, match="pip install inseq"):
        inseq_method("saliency")(llama, ids, P, None)


@pytest.mark.parametrize(("name", "own"), [("saliency", saliency), ("input_x_gradient", None)])
def test_inseq_explains_exactly_the_tokens_it_is_given(name, own):
    model = small_llama(hidden_size=60)
    prompts = padded_prompts((7, 4))
    ids = torch.cat([prompts["input_ids"], torch.tensor([[60, 6, 10], [1, 2, 55]])], dim=1)
    mask = torch.cat([prompts["attention_mask"], torch.tensor([[1, 1, 1], [1, 1, 0]])], dim=1)
    scores = inseq_method(name)(model, ids, 7, mask)
    if own is not None:  # inseq explains probabilities
        torch.testing.assert_close(scores, own(model, ids, 7, mask, target="probability"), rtol=1e-3, atol=1e-9)
    assert not scores[1, :, :3].any()
    assert not scores[1, 2].any()
    assert scores[1, 1, 3:8].all()
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_after_inseq_the_model_still_returns_its_attention_weights():
    model, ids = small_llama(attention="eager", hidden_size=60), random_ids(1, 6)
    first, second = (inseq_method("attention")(model, ids, 4) for _ in range(2))
    assert torch.equal(first, second)
    attentions = model(ids, output_attentions=True).attentions
    assert [weights.shape[-1] for weights in attentions] == [6] * model.config.num_hidden_layers


def test_what_fails_in_inseq_says_so_and_leaves_no_hooks():
    model = small_llama(hidden_size=60)
    with pytest.raises(GradELLMError, match="inseq's `no_such_method` failed on `llama`"):
        inseq_method("no_such_method")(model, random_ids(1, 6), 4, None)
    with pytest.raises(InvalidInputError, match="give `inseq_method` the model's tokenizer"):
        inseq_method("reagent")(model, random_ids(1, 6), 4, None)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
