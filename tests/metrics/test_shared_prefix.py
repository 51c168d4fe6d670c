"""What a perturbed text has in common with the unchanged one is not run again, and nothing else changes."""

import pytest
import torch

from gradellm_hf.architecture.compat import cache_of
from gradellm_hf.metrics import perturbation, shared_prefix
from gradellm_hf.metrics.perturbation import PerturbedText, Window, hellinger
from tests.support.tiny_models import float64_islands, random_text, tiny_model

PROMPT, STEPS = 11, 6
FAMILIES = ["llama", "mistral_windowed", "gpt2", "qwen3_moe"]


def left_out_one_by_one(model, token_ids, mask, sources):
    """Distances `[R, K, N]`, with whole texts and a model that knows nothing of caches."""
    embeddings = model.get_input_embeddings()(token_ids)
    positions = (mask.cumsum(1) - 1).clamp_min(0)

    def run(x):
        with torch.no_grad():
            logits = model(inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return logits[:, PROMPT - 1 : -1].log_softmax(-1)

    expected, rows = run(embeddings), []
    for source in sources.tolist():
        without = embeddings.clone()
        without[:, source] = 0
        rows.append(hellinger(expected, run(without)))
    return torch.stack(rows, dim=1)


@pytest.fixture
def positions_run(monkeypatch):
    """How many positions each call of the model ran."""
    counts = []
    run = shared_prefix.run

    def counted(facts, embeddings, *args, **kwargs):
        counts.append(embeddings.shape[1])
        return run(facts, embeddings, *args, **kwargs)

    for module in (shared_prefix, perturbation):
        monkeypatch.setattr(module, "run", counted)
    return counts


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_those_of_running_the_whole_text_without_one_token_at_a_time(family, padding, batch_size):
    model = tiny_model(family)
    token_ids, _ = random_text(model, 2, PROMPT, STEPS)
    mask = torch.ones_like(token_ids)
    mask[1, :padding] = 0
    sources = torch.tensor([3, 4, 7, 10, 12, 15])  # some are generated, and change later tokens only
    text = PerturbedText(model, token_ids, PROMPT, mask, batch_size=batch_size)
    with float64_islands():
        expected = left_out_one_by_one(model, token_ids, mask, sources)
        for row in (0, 1):
            effects = text.leave_one_out(torch.full_like(sources, row), sources).mT
            torch.testing.assert_close(effects, expected[row].mT, rtol=0, atol=1e-7, check_dtype=False)
            assert effects.max() > 1e-3
            assert not effects[0, -2:].any()  # they come later


def test_what_comes_before_a_change_is_not_run_again(positions_run):
    model = tiny_model("llama")
    token_ids, _ = random_text(model, 1, PROMPT, STEPS)
    sources = torch.tensor([0, 4, 9, 15])
    text = PerturbedText(model, token_ids, PROMPT, batch_size=1)
    text.leave_one_out(torch.zeros_like(sources), sources)
    whole, half = PROMPT + STEPS - 1, PROMPT + STEPS - 1 - (PROMPT + STEPS - 1) // 2
    # the unchanged text, the first text, the unchanged one once more and its half; from position 10 on tokens are predicted
    assert positions_run == [whole, whole, whole, half, whole - 4, whole - 9, whole - 10]


@pytest.mark.parametrize("removal", ["zero", "mask"])
def test_texts_with_the_same_beginning_have_the_probabilities_of_the_whole_text(removal, monkeypatch):
    model = tiny_model("llama")
    token_ids, _ = random_text(model, 2, PROMPT, STEPS)
    keep = torch.ones(4, PROMPT)
    keep[:, 6:9] = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    rows, window = torch.tensor([0, 1, 1, 0]), Window(1, 4)
    with float64_islands():
        shared = PerturbedText(model, token_ids, PROMPT).log_probabilities(rows, window, keep, removal)
        monkeypatch.setattr(perturbation, "_WORTH_SHARING", 0)
        whole = PerturbedText(model, token_ids, PROMPT).log_probabilities(rows, window, keep, removal)
    torch.testing.assert_close(shared, whole, rtol=0, atol=1e-9)
    assert not torch.equal(whole[0], whole[3])


def test_a_model_that_reads_several_tokens_on_a_cache_in_another_way_is_run_from_the_beginning(positions_run):
    model = tiny_model("llama")
    token_ids, _ = random_text(model, 1, PROMPT, STEPS)
    sources = torch.tensor([9, 12])

    def forgets(module, args, kwargs):
        if cache_of(kwargs) is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"].clone()
            kwargs["attention_mask"][:, :5] = 0
        return args, kwargs

    handle = model.register_forward_pre_hook(forgets, with_kwargs=True)
    text = PerturbedText(model, token_ids, PROMPT, batch_size=1)
    effects = text.leave_one_out(torch.zeros_like(sources), sources)
    handle.remove()
    expected = PerturbedText(model, token_ids, PROMPT).leave_one_out(torch.zeros_like(sources), sources)
    torch.testing.assert_close(effects, expected)
    whole = PROMPT + STEPS - 1
    assert positions_run[:5] == [whole, whole, whole - whole // 2, whole, whole]  # the half is not what it was
