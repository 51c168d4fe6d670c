"""`steps=`: only some of the generated tokens are explained, exactly as they are when all are."""

import contextlib

import pytest
import torch

from gradellm_hf import GradELLMConfig, InvalidInputError, explain_generate, explain_sequences
from tests.sequences.test_as_generated import STEERED, steer
from tests.support.architectures import tiny_configs
from tests.support.small_llama import PAD, padded_prompts, random_ids, small_llama
from tests.support.tiny_models import float64_islands, random_text, tiny_model
from tests.support.tiny_multimodal import prompt_with_images, tiny_multimodal

PROMPT, STEPS = 7, 9
ENGINES = ("replay", "stepwise")
CHOICES = {
    "the last": [-1],
    "the first": slice(1),
    "the end": slice(-3, None),
    "a middle": slice(2, 5),
    "every third": slice(None, None, 3),
    "some, in any order": [7, 1, -8],
    "all": slice(None),
}


def chosen(steps, num_steps=STEPS):
    return list(range(num_steps)[steps]) if isinstance(steps, slice) else sorted({n % num_steps for n in steps})


def assert_same_rows(some, whole, explained):
    """The rows `[R, N]` of the whole explanation, and nothing else."""
    for name in ("attributions", "target_scores", "token_probabilities", "layer_attributions"):
        actual, expected = getattr(some, name), getattr(whole, name)
        if expected is None:
            continue
        mask = explained if expected.ndim == 2 else explained[..., None]
        mask = mask[:, None] if expected.ndim == 4 else mask
        expected = expected * mask
        assert expected.abs().max() > 0
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * expected.abs().max().item())
    assert torch.equal(some.sequences, whole.sequences)
    assert torch.equal(some.step_mask, whole.step_mask)
    assert torch.equal(some.explained_mask, explained)


def mask_of(steps, whole):
    mask = torch.zeros_like(whole.step_mask)
    for row, length in enumerate(whole.step_mask.sum(-1).tolist()):
        mask[row, chosen(steps, length)] = True
    return mask


@contextlib.contextmanager
def counted(model):
    """The calls of the model: how many tokens each reads, and whether with gradients."""
    calls = []
    handle = model.model.layers[-1].register_forward_hook(
        lambda module, args, output: calls.append((output.shape[1], output.requires_grad))
    )
    try:
        explain_sequences(model, random_ids(1, PROMPT + STEPS), PROMPT)  # the model is looked at once
        calls.clear()
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("choice", CHOICES)
def test_given_text_has_the_same_rows_as_when_all_is_explained(choice, engine):
    model = small_llama(dtype=torch.float64)
    text, mask = random_text(model, 3, PROMPT, STEPS, padding=[0, 3, 2])
    config = GradELLMConfig(engine=engine, step_chunk_size=4, output_layer_attributions=True)
    with float64_islands():
        whole = explain_sequences(model, text, PROMPT, mask, explain_config=config)
        some = explain_sequences(model, text, PROMPT, mask, explain_config=config, steps=CHOICES[choice])
    assert_same_rows(some, whole, mask_of(CHOICES[choice], whole))


@pytest.mark.parametrize("family", ["mistral_windowed", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("engine", ENGINES)
def test_other_families_have_the_same_rows(family, engine):
    model = tiny_model(family)
    text, mask = random_text(model, 2, PROMPT, STEPS, padding=[0, 3])
    config = GradELLMConfig(engine=engine, step_chunk_size=3)
    with float64_islands():
        whole = explain_sequences(model, text, PROMPT, mask, explain_config=config)
        some = explain_sequences(model, text, PROMPT, mask, explain_config=config, steps=[1, 6, 7])
    assert_same_rows(some, whole, mask_of([1, 6, 7], whole))


@pytest.mark.parametrize("model_type", ["bloom", "lfm2", "openai-gpt"])
def test_models_with_other_caches_or_none_have_the_same_rows(model_type):
    model = tiny_configs.tiny_model(model_type).double()
    text, config = random_ids(2, PROMPT + STEPS) % 50, GradELLMConfig(engine="stepwise")
    with float64_islands():
        whole = explain_sequences(model, text, PROMPT, explain_config=config)
        some = explain_sequences(model, text, PROMPT, explain_config=config, steps=[2, -1])
    assert_same_rows(some, whole, mask_of([2, -1], whole))


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "all beams": {"num_beams": 2, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "no cache": {"use_cache": False},
    "guidance": {"guidance_scale": 1.5},
    "stepwise": {"explain_config": GradELLMConfig(engine="stepwise")},
    "contrast": {"explain_config": GradELLMConfig(target="contrast", contrast_token_ids=[list(range(20, 20 + STEPS))])},
    "chunks": {"explain_config": GradELLMConfig(step_chunk_size=2)},
    "paper": {"explain_config": GradELLMConfig.paper(layers="all")},
    "paper, stepwise": {"explain_config": GradELLMConfig.paper(engine="stepwise", step_chunk_size=2)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [slice(-3, None), [1, 2, 6]], ids=["the end", "some"])
def test_generated_text_has_the_same_rows_whatever_generate_did(way, steps):
    options = {**padded_prompts(), "max_new_tokens": STEPS, **WAYS[way]}
    model = small_llama(dtype=torch.float64, head_dim=8)  # H * D == E, for the paper's
    with float64_islands():
        torch.manual_seed(0)
        whole = explain_generate(model, **options)
        torch.manual_seed(0)
        some = explain_generate(model, **options, steps=steps)
    assert_same_rows(some, whole, mask_of(steps, whole))


def test_each_row_of_a_batch_counts_its_own_tokens():
    model = small_llama(dtype=torch.float64)
    prompts = padded_prompts()
    ends = explain_generate(model, **prompts, max_new_tokens=STEPS).sequences[0, 9 + 4].item()
    options = {**prompts, "max_new_tokens": STEPS, "eos_token_id": ends, "pad_token_id": PAD}
    with float64_islands():
        whole, some = explain_generate(model, **options), explain_generate(model, **options, steps=slice(-2, None))
    lengths = whole.step_mask.sum(-1)
    assert lengths.min() < lengths.max()
    assert some.explained_mask.sum(-1).tolist() == [2, 2, 2]
    assert_same_rows(some, whole, mask_of(slice(-2, None), whole))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_of_embeddings_has_the_same_rows(engine):
    model, prompts = small_llama(dtype=torch.float64), padded_prompts()
    options = {
        "inputs_embeds": model.get_input_embeddings()(prompts["input_ids"]).detach(),
        "attention_mask": prompts["attention_mask"],
        "max_new_tokens": STEPS,
        "explain_config": GradELLMConfig(engine=engine, step_chunk_size=4),
    }
    for further in ({}, {"num_beams": 2}):
        with float64_islands():
            whole = explain_generate(model, **options, **further)
            some = explain_generate(model, **options, **further, steps=[0, 1, 5])
        assert_same_rows(some, whole, mask_of([0, 1, 5], whole))


def test_text_after_an_image_has_the_same_rows():
    model, prompt = tiny_multimodal("llava"), prompt_with_images("llava", [[2, 5], [3, 2]]).inputs
    for further in ({}, {"num_beams": 2}):
        with float64_islands():
            whole = explain_generate(model, **prompt, max_new_tokens=5, **further)
            some = explain_generate(model, **prompt, max_new_tokens=5, **further, steps=[-1])
        assert_same_rows(some, whole, mask_of([-1], whole))


@pytest.mark.parametrize("when", STEERED.values(), ids=STEERED)
@pytest.mark.parametrize("is_readable", [True, False], ids=["cache", "no cache"])
@pytest.mark.filterwarnings("ignore::gradellm_hf.GradELLMWarning")
def test_a_model_that_is_steered_while_it_writes_or_reads_has_the_same_rows(when, is_readable, monkeypatch):
    model = small_llama(dtype=torch.float64)
    steer(model, when)
    if not is_readable:
        monkeypatch.setattr("gradellm_hf.generation.prompt_cache", lambda *_: None)
    options = {"input_ids": random_ids(1, PROMPT), "max_new_tokens": STEPS}
    with float64_islands():
        whole, some = explain_generate(model, **options), explain_generate(model, **options, steps=[4, 5, 8])
    assert_same_rows(some, whole, mask_of([4, 5, 8], whole))


def test_steps_that_are_not_explained_are_not_run_when_the_cache_of_generate_can_be_read():
    model, prompts = small_llama(), padded_prompts()
    with counted(model) as calls:
        explain_generate(model, **prompts, max_new_tokens=STEPS, steps=slice(-2, None))
    assert calls == [(9, False), *[(1, False)] * (STEPS - 1), (2, True)]


def test_steps_that_are_not_explained_are_only_read_and_none_after_the_last_one():
    model = small_llama()
    with counted(model) as calls:
        explain_sequences(model, random_ids(1, PROMPT + STEPS), PROMPT, steps=[3, 4])
    assert calls == [(PROMPT - 1, False), (3, False), (2, True)]


def test_steps_that_lie_apart_are_explained_in_one_chunk():
    model = small_llama()
    with counted(model) as calls:
        explain_sequences(model, random_ids(1, PROMPT + STEPS), PROMPT, steps=[0, 4, 6])
    assert calls == [(PROMPT - 1, False), (7, True)]


def test_a_chunk_without_memory_is_halved_also_where_it_is_only_read():
    model, text = small_llama(dtype=torch.float64), random_ids(1, PROMPT + STEPS)
    with float64_islands():
        whole = explain_sequences(model, text, PROMPT)

        def full(module, args, kwargs):
            if kwargs["input_ids"].shape[1] in (3, 4):
                raise torch.OutOfMemoryError

        handle = model.register_forward_pre_hook(full, with_kwargs=True)
        some = explain_sequences(model, text, PROMPT, steps=slice(-4, None), explain_config=GradELLMConfig(step_chunk_size=4))
        handle.remove()
    assert_same_rows(some, whole, mask_of(slice(-4, None), whole))


def test_a_slice_may_select_nothing():
    out = explain_sequences(small_llama(), random_ids(2, PROMPT + STEPS), PROMPT, steps=slice(100, None))
    assert not out.explained_mask.any()
    assert not out.attributions.any()


NO_STEPS = [5, "100:", [], [1.0], [True], slice("a", None), slice(None, None, 0), {"a": 1}, torch.ones(2)]


@pytest.mark.parametrize("steps", NO_STEPS, ids=repr)
def test_what_names_no_steps_is_refused_before_anything_is_generated(steps):
    model = small_llama()
    handle = model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(InvalidInputError, match="`steps` must be a slice or a list"):
        explain_generate(model, **padded_prompts(), steps=steps)
    handle.remove()


@pytest.mark.parametrize("step", [STEPS, -STEPS - 1])
def test_an_index_that_no_row_has_is_refused_with_what_was_generated(step):
    with pytest.raises(InvalidInputError, match=f"has {step}, but {STEPS} tokens are generated") as caught:
        explain_generate(small_llama(), **padded_prompts(), max_new_tokens=STEPS, steps=[0, step])
    assert caught.value.generated.sequences.shape == (3, 9 + STEPS)


def test_without_steps_there_is_no_mask_of_them():
    assert explain_generate(small_llama(), **padded_prompts(), max_new_tokens=2).explained_mask is None
