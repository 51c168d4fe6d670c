"""`explain_sequences`: text that already exists."""

import pytest
import torch
from torch import nn

from gradellm_hf import GradELLMConfig, InvalidInputError, explain_generate, explain_sequences
from tests.support.small_llama import PAD, assert_same_heatmaps, padded_prompts, random_ids, small_llama


@pytest.fixture(scope="module")
def llama():
    return small_llama()


def test_text_written_by_generate_is_explained_as_explain_generate_does(llama):
    prompts = padded_prompts()
    written = explain_generate(llama, **prompts, max_new_tokens=6)
    out = explain_sequences(llama, written.sequences, 9, prompts["attention_mask"])
    assert torch.equal(out.sequences, written.sequences)
    assert torch.equal(out.prompt_mask, prompts["attention_mask"].bool())
    assert out.prompt_length == 9
    assert_same_heatmaps(out.attributions, written.attributions)


def test_a_text_the_model_would_never_write_is_explained_all_the_same(llama):
    sequences = random_ids(2, 14)
    out = explain_sequences(llama, sequences, 8)
    logits = llama(sequences).logits[:, 7:-1]
    chosen = logits.gather(-1, sequences[:, 8:, None])[..., 0]
    torch.testing.assert_close(out.target_scores, chosen, rtol=1e-4, atol=1e-4)
    probabilities = logits.softmax(-1).gather(-1, sequences[:, 8:, None])[..., 0]
    torch.testing.assert_close(out.token_probabilities, probabilities, rtol=1e-3, atol=1e-6)
    assert (out.attributions.sum(-1) > 0).all()


def test_a_step_sees_the_positions_before_it_and_no_padding(llama):
    prompts = padded_prompts()
    sequences = torch.cat([prompts["input_ids"], random_ids(3, 5, seed=1)], dim=1)
    out = explain_sequences(llama, sequences, 9, prompts["attention_mask"])
    before = torch.ones(5, 14, dtype=torch.bool).tril(8)
    visible = before & torch.cat([prompts["attention_mask"], torch.ones(3, 5)], dim=1).bool()[:, None]
    assert (out.attributions[~visible] == 0).all()
    assert (out.attributions[visible] > 0).float().mean() > 0.5


@pytest.mark.parametrize("padding", [1, 4, 20])
def test_padding_changes_nothing(llama, padding):
    sequences = random_ids(1, 12)
    alone = explain_sequences(llama, sequences, 7)
    padded = torch.cat([torch.zeros(1, padding, dtype=torch.long), sequences], dim=1)
    mask = torch.cat([torch.zeros(1, padding), torch.ones(1, 12)], dim=1).long()
    out = explain_sequences(llama, padded, 7 + padding, mask)
    assert_same_heatmaps(out.attributions[:, :, padding:], alone.attributions)
    assert (out.attributions[:, :, :padding] == 0).all()


@pytest.mark.parametrize("rows", [2, 5])
def test_rows_are_independent(llama, rows):
    sequences = random_ids(rows, 12)
    together = explain_sequences(llama, sequences, 7).attributions
    for row in range(rows):
        assert_same_heatmaps(together[row : row + 1], explain_sequences(llama, sequences[row : row + 1], 7).attributions)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_the_mask_may_cover_the_prompt_or_everything_and_be_of_any_type(llama, dtype):
    prompts = padded_prompts()
    sequences = torch.cat([prompts["input_ids"], random_ids(3, 5, seed=1)], dim=1)
    mask = prompts["attention_mask"].to(dtype)
    short = explain_sequences(llama, sequences, 9, mask)
    whole = explain_sequences(llama, sequences, 9, torch.cat([mask, torch.ones(3, 5).to(dtype)], dim=1))
    assert torch.equal(short.attributions, whole.attributions)
    assert_same_heatmaps(short.attributions, explain_sequences(llama, sequences, 9, prompts["attention_mask"]).attributions)


def test_the_mask_ends_rows(llama):
    sequences = random_ids(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 10:] = 0
    out = explain_sequences(llama, sequences, 7, mask)
    assert out.step_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert (out.attributions[1, 3:] == 0).all()
    whole = explain_sequences(llama, sequences, 7)
    assert_same_heatmaps(out.attributions[0], whole.attributions[0])
    assert_same_heatmaps(out.attributions[1, :3], whole.attributions[1, :3])


@pytest.mark.parametrize("pad", [PAD, 2], ids=["padding of its own", "padded with the end of sequence"])
def test_an_end_of_sequence_token_ends_a_row_where_nothing_but_padding_follows(pad):
    model, sequences = small_llama(), random_ids(3, 12)
    model.generation_config.eos_token_id = [2, 1]
    sequences[0, 8], sequences[0, 9:] = 2, pad
    sequences[1, 8] = 2  # in the midst of text: a chat of several turns
    sequences[2, 8], sequences[2, 10], sequences[2, 11] = 2, 1, pad
    out = explain_sequences(model, sequences, 7)
    assert out.step_mask.tolist() == [[True, True, False, False, False], [True] * 5, [True, True, True, True, False]]
    assert (out.attributions.amax(-1) > 0).tolist() == out.step_mask.tolist()


def test_a_mask_over_the_continuation_alone_says_where_rows_end():
    model, sequences = small_llama(), random_ids(2, 12)
    plain = explain_sequences(model, sequences, 7)
    model.generation_config.eos_token_id = [int(sequences[0, 9]), int(sequences[1, 10]), int(sequences[1, 11])]
    whole = explain_sequences(model, sequences, 7, torch.ones(2, 12))
    assert whole.step_mask.all()
    assert torch.equal(whole.attributions, plain.attributions)
    assert explain_sequences(model, sequences, 7, torch.ones(2, 7)).step_mask[1].tolist() == [True] * 4 + [False]


def test_a_token_behind_the_end_of_a_row_is_refused(llama):
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 9] = 0
    with pytest.raises(InvalidInputError, match=r"continuation of row\(s\) \[1\], `attention_mask` has a 1 behind a 0"):
        explain_sequences(llama, random_ids(2, 12), 7, mask)


def test_ids_of_32_bits_are_ids(llama):
    sequences = random_ids(2, 12)
    out = explain_sequences(llama, sequences.int(), 7)
    assert_same_heatmaps(out.attributions, explain_sequences(llama, sequences, 7).attributions)


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_nothing_after_the_prompt_gives_no_steps(llama, engine):
    sequences = random_ids(2, 7)
    config = GradELLMConfig(engine=engine, output_layer_attributions=True)
    out = explain_sequences(llama, sequences, 7, explain_config=config)
    assert out.attributions.shape == (2, 0, 7)
    assert out.layer_attributions.shape == (2, 5, 0, 7)
    assert out.step_mask.shape == out.target_scores.shape == out.token_probabilities.shape == (2, 0)


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_a_prompt_of_one_token_is_enough(llama, engine):
    sequences = random_ids(2, 6)
    out = explain_sequences(llama, sequences, 1, explain_config=GradELLMConfig(engine=engine))
    later = explain_sequences(llama, sequences, 4)
    assert_same_heatmaps(out.attributions[:, 3:], later.attributions)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("config", [{}, {"spatial": "loosened", "layers": [0, 3]}, {"target": "probability"}], ids=str)
def test_the_size_of_chunks_of_steps_does_not_matter(llama, size, config):
    prompts = padded_prompts()
    sequences = torch.cat([prompts["input_ids"], random_ids(3, 7, seed=1)], dim=1)

    def heatmaps(size):
        config_ = GradELLMConfig(**config, step_chunk_size=size)
        return explain_sequences(llama, sequences, 9, prompts["attention_mask"], explain_config=config_).attributions

    assert_same_heatmaps(heatmaps(size), heatmaps(None))


def test_contrast_with_one_foil_or_one_a_step_is_the_difference_of_logits(llama):
    sequences, foils = random_ids(2, 12), random_ids(2, 5, seed=9)
    logits = llama(sequences).logits[:, 6:-1]

    def chosen(ids):
        return logits.gather(-1, ids[..., None])[..., 0]

    for given, expanded in ((foils, foils), (foils.tolist(), foils), (11, torch.full((2, 5), 11))):
        config = GradELLMConfig(target="contrast", contrast_token_ids=given)
        out = explain_sequences(llama, sequences, 7, explain_config=config)
        torch.testing.assert_close(out.target_scores, chosen(sequences[:, 7:]) - chosen(expanded), rtol=1e-4, atol=1e-4)


def test_a_callable_target_equals_the_built_in_one_that_it_repeats(llama):
    sequences = random_ids(2, 12)

    def log_probability(logits, token_ids):
        return logits.log_softmax(-1).gather(-1, token_ids[..., None])[..., 0]

    mine = explain_sequences(llama, sequences, 7, explain_config=GradELLMConfig(target=log_probability))
    built_in = explain_sequences(llama, sequences, 7, explain_config=GradELLMConfig(target="log_probability"))
    assert_same_heatmaps(mine.attributions, built_in.attributions)
    assert_same_heatmaps(mine.target_scores, built_in.target_scores)


@pytest.mark.parametrize("parallel", [nn.DataParallel])
def test_a_data_parallel_model_is_the_model_inside(llama, parallel):
    sequences = random_ids(2, 12)
    out = explain_sequences(parallel(llama), sequences, 7)
    assert torch.equal(out.attributions, explain_sequences(llama, sequences, 7).attributions)
