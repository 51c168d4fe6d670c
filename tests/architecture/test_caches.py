"""Whatever cache `generate` filled or was given: the explanation is the same, and the cache stays usable."""

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, StaticCache

from gradellm_hf import InvalidInputError, explain_generate, explain_sequences
from tests.support.small_llama import (
    assert_explained_as_existing_text,
    assert_same_heatmaps,
    generate_both,
    padded_prompts,
    random_ids,
    small_llama,
)
from tests.support.versions import CACHE, since

FILLED = {
    "static": {"cache_implementation": "static"},
    "static, beams": {"cache_implementation": "static", "num_beams": 3, "num_return_sequences": 2},
    "static, several samples": {"cache_implementation": "static", "do_sample": True, "num_return_sequences": 2},
    "prefilled in chunks": {"prefill_chunk_size": 4, "cache_implementation": "dynamic"},
    "prefilled in one chunk and a rest of one": {"prefill_chunk_size": 8, "cache_implementation": "dynamic"},
}
only_new_ids = since("5.3", "way to continue a cache with the new token ids alone")


@pytest.fixture(scope="module")
def llama():
    return small_llama()


@pytest.fixture(scope="module")
def windowed_mistral():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=44,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=10,
        sliding_window=5,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=None,
    )
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("options", FILLED.values(), ids=FILLED.keys())
def test_the_way_the_cache_was_filled_does_not_matter(llama, options):
    prompts = padded_prompts()
    expected, out = generate_both(llama, **prompts, max_new_tokens=8, **options)
    assert torch.equal(out.sequences, expected)
    copies = options.get("num_return_sequences", 1)
    assert_explained_as_existing_text(llama, out, prompts["attention_mask"].repeat_interleave(copies, dim=0))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_a_window_that_slides_over_the_prompt_does_not_matter(windowed_mistral, options):
    prompts = padded_prompts()
    expected, out = generate_both(windowed_mistral, **prompts, max_new_tokens=8, **options)
    assert torch.equal(out.sequences, expected)
    assert_explained_as_existing_text(windowed_mistral, out, prompts["attention_mask"])
    assert (out.attributions[:, -1, :11] == 0).all()  # outside the window of the last query, positions 11 to 15
    assert (out.attributions[:, -1, 11:16].sum(-1) > 0).all()
    assert (out.attributions[:, -1, 16] == 0).all()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_a_window_that_slides_past_a_prompt_shorter_than_itself_does_not_matter(windowed_mistral, options):
    """What the cache still holds is as long as the prompt, but of later positions."""
    prompts = padded_prompts((4, 2))
    expected, out = generate_both(windowed_mistral, **prompts, max_new_tokens=9, **options)
    assert torch.equal(out.sequences, expected)
    assert_explained_as_existing_text(windowed_mistral, out, prompts["attention_mask"])


@pytest.mark.usefixtures("quiet_transformers")
def test_assisted_decoding_is_explained_like_any_other(llama):
    ids, assistant = random_ids(1, 9), small_llama(seed=1)
    expected, out = generate_both(llama, input_ids=ids, max_new_tokens=8, assistant_model=assistant)
    assert torch.equal(out.sequences, expected)
    assert_explained_as_existing_text(llama, out)


@pytest.mark.usefixtures("quiet_transformers")
@pytest.mark.parametrize("seed", [0, 1])
def test_an_assistant_that_guesses_everything_right_is_no_exception(llama, seed):
    expected, out = generate_both(llama, input_ids=random_ids(1, 9, seed), max_new_tokens=8, assistant_model=small_llama())
    assert torch.equal(out.sequences, expected)
    assert_explained_as_existing_text(llama, out)


@since("5.1", "prompt lookup decoding without an end-of-sequence token")
def test_prompt_lookup_decoding_is_explained_like_any_other(llama):
    ids = random_ids(1, 4).repeat(1, 3)
    expected, out = generate_both(llama, input_ids=ids, max_new_tokens=8, prompt_lookup_num_tokens=3)
    assert torch.equal(out.sequences, expected)
    assert_explained_as_existing_text(llama, out)


def prefilled(model, ids, mask, length, cache):
    """A cache that has read the first `length` columns."""
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, :length]
    with torch.no_grad():
        model(input_ids=ids[:, :length], attention_mask=mask[:, :length], position_ids=positions, **{CACHE: cache})
    return cache


CACHES = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=32),
}


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("length", [1, 6, 8])
def test_a_cache_that_has_read_part_of_the_prompt_is_used_beside_the_whole_prompt(llama, kind, length):
    prompts = padded_prompts()
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    plain = llama.generate(**prompts, max_new_tokens=6)
    cache = prefilled(llama, ids, mask, length, CACHES[kind](llama))
    out = explain_generate(llama, **prompts, max_new_tokens=6, **{CACHE: cache})
    assert torch.equal(out.sequences, plain)
    assert cache.get_seq_length() == 9 + 5
    assert_explained_as_existing_text(llama, out, mask)


@only_new_ids
@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_that_holds_the_start_of_the_prompt_needs_only_the_new_ids_and_the_whole_mask(llama, kind):
    prompts = padded_prompts()
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    options = {"input_ids": ids[:, 6:], "attention_mask": mask, "max_new_tokens": 6}
    expected = llama.generate(**options, **{CACHE: prefilled(llama, ids, mask, 6, CACHES[kind](llama))})
    out = explain_generate(llama, **options, **{CACHE: prefilled(llama, ids, mask, 6, CACHES[kind](llama))})
    assert torch.equal(out.sequences, expected)
    whole = torch.cat([ids[:, :6], expected], dim=1)
    given = explain_sequences(llama, whole, 9, mask)
    assert out.prompt_length == 9
    assert_same_heatmaps(out.attributions, given.attributions)


@only_new_ids
def test_a_start_of_the_prompt_that_has_left_the_window_cannot_be_explained(windowed_mistral):
    ids = random_ids(1, 9)
    mask = torch.ones_like(ids)
    cache = prefilled(windowed_mistral, ids, mask, 7, DynamicCache(config=windowed_mistral.config))
    with pytest.raises(InvalidInputError, match=r"only in `cache`.*Pass the token ids of the whole prompt") as raised:
        explain_generate(windowed_mistral, ids[:, 7:], attention_mask=mask, max_new_tokens=4, **{CACHE: cache})
    assert raised.value.generated.sequences.shape == (1, 2 + 4)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_generation_goes_on_from_the_returned_cache(llama, options):
    ids = random_ids(2, 9)
    if options:
        options = {CACHE: StaticCache(config=llama.config, max_cache_len=40)}
    out = explain_generate(llama, ids, max_new_tokens=5, return_dict_in_generate=True, **options)
    assert out.cache.get_seq_length() == 9 + 4
    continued = llama.generate(out.sequences, max_new_tokens=5, **{CACHE: out.cache})
    assert torch.equal(continued, llama.generate(ids, max_new_tokens=10))


def test_the_returned_cache_is_the_one_that_generate_returns(llama):
    prompts = padded_prompts()
    expected, out = generate_both(llama, **prompts, max_new_tokens=6, return_dict_in_generate=True)
    assert len(out.cache.layers) == 5
    for mine, theirs in zip(out.cache.layers, expected[CACHE].layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)
    assert not any(layer.keys.requires_grad for layer in out.cache.layers)


def test_a_conversation_is_explained_turn_by_turn_on_one_cache(llama):
    cache, ids = DynamicCache(config=llama.config), random_ids(1, 7)
    for turn in range(3):
        out = explain_generate(llama, ids, max_new_tokens=4, **{CACHE: cache})
        assert torch.equal(out.sequences, llama.generate(ids, max_new_tokens=4))
        assert_explained_as_existing_text(llama, out)
        ids = torch.cat([out.sequences, random_ids(1, 3, seed=turn)], dim=1)


def test_a_cache_made_in_inference_mode_is_used_like_any_other(llama):
    prompts = padded_prompts()
    with torch.inference_mode():
        cache = prefilled(llama, prompts["input_ids"], prompts["attention_mask"], 6, DynamicCache(config=llama.config))
        out = explain_generate(llama, **prompts, max_new_tokens=6, **{CACHE: cache})
    assert torch.equal(out.sequences, llama.generate(**prompts, max_new_tokens=6))
    assert_explained_as_existing_text(llama, out, prompts["attention_mask"])
