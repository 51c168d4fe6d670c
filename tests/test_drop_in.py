"""`explain_generate` writes what `model.generate` writes, however it is called."""

from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from gradellm_hf import explain_generate, explain_sequences
from tests.support.small_llama import (
    assert_explained_as_existing_text,
    assert_same_heatmaps,
    generate_both,
    padded_prompts,
    random_ids,
    small_llama,
)

STRATEGIES = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
    "several samples": {"do_sample": True, "num_return_sequences": 3, "top_k": 40},
    "beams": {"num_beams": 4},
    "several beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "all beams": {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True},
    "sampled beams": {"num_beams": 3, "do_sample": True, "top_k": 30},
    "several sampled beams": {"num_beams": 4, "do_sample": True, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
    "beams without cache": {"num_beams": 3, "use_cache": False},
    "minimum length": {"min_new_tokens": 4},
    "repetition penalty": {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2},
}


class PreferEven(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + 5.0 * (torch.arange(scores.shape[-1]) % 2 == 0)


class StopAfter(StoppingCriteria):
    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


class Keep(BaseStreamer):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.calls.append(value.tolist())

    def end(self) -> None:
        self.calls.append("end")


@pytest.fixture(scope="module")
def llama():
    return small_llama()


def eos_that_ends_rows_apart(model: Any, prompts: dict[str, torch.Tensor], **options: Any) -> int:
    """A token that ends the rows at different steps when it is the end-of-sequence token."""
    width = prompts["input_ids"].shape[1]
    for token in model.generate(**prompts, max_new_tokens=8, **options)[:, width:].unique().tolist():
        written = model.generate(**prompts, max_new_tokens=8, eos_token_id=token, **options)[:, width:].tolist()
        lengths = [row.index(token) if token in row else 8 for row in written]
        if len(set(lengths)) > 1 and min(lengths) > 0:
            return token
    raise AssertionError("This model ends all rows at once; choose another seed.")


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_every_decoding_strategy_writes_and_explains_a_left_padded_batch(llama, options):
    prompts = padded_prompts()
    expected, out = generate_both(llama, **prompts, max_new_tokens=8, **options)
    assert torch.equal(out.sequences, expected)
    copies = options.get("num_return_sequences", 1)
    assert_explained_as_existing_text(llama, out, prompts["attention_mask"].repeat_interleave(copies, dim=0))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_rows_that_end_at_different_steps_are_explained_up_to_their_end(llama, options):
    prompts = padded_prompts()
    eos = eos_that_ends_rows_apart(llama, prompts, **options)
    expected, out = generate_both(llama, **prompts, max_new_tokens=8, eos_token_id=eos, **options)
    assert torch.equal(out.sequences, expected)
    for row, mask in zip(expected[:, 9:].tolist(), out.step_mask.tolist(), strict=True):
        length = row.index(eos) + 1 if eos in row else len(row)
        assert mask == [True] * length + [False] * (len(row) - length)
    assert not out.step_mask.all()
    for scores in (out.attributions, out.target_scores, out.token_probabilities):
        assert (scores[~out.step_mask] == 0).all()
        assert (scores[out.step_mask].abs().amax(-1) > 0).all()
    copies = options.get("num_return_sequences", 1)
    assert_explained_as_existing_text(llama, out, prompts["attention_mask"].repeat_interleave(copies, dim=0))


def test_a_minimum_length_keeps_the_end_of_sequence_away(llama):
    prompts = padded_prompts()
    eos = eos_that_ends_rows_apart(llama, prompts)
    expected, out = generate_both(llama, **prompts, max_new_tokens=8, min_new_tokens=8, eos_token_id=eos)
    assert torch.equal(out.sequences, expected)
    assert out.step_mask.all()


@pytest.mark.parametrize("options", [{"eos_token_id": None}, {"eos_token_id": -1}], ids=str)
def test_an_end_of_sequence_token_that_the_call_switches_off_ends_no_row(options):
    model, prompts = small_llama(), padded_prompts()
    model.generation_config.eos_token_id = eos_that_ends_rows_apart(model, prompts)
    expected, out = generate_both(model, **prompts, max_new_tokens=8, **options)
    assert model.generation_config.eos_token_id in expected[:, 9:-1]
    assert torch.equal(out.sequences, expected)
    assert out.step_mask.all()


def test_custom_processors_and_stopping_criteria_are_obeyed(llama):
    prompts = padded_prompts()
    custom = {
        "logits_processor": LogitsProcessorList([PreferEven()]),
        "stopping_criteria": StoppingCriteriaList([StopAfter(13)]),
    }
    expected, out = generate_both(llama, **prompts, max_new_tokens=8, **custom)
    assert expected.shape == (3, 13)
    assert torch.equal(out.sequences, expected)
    assert (out.sequences[:, 9:] % 2 == 0).float().mean() > 0.5
    assert_explained_as_existing_text(llama, out, prompts["attention_mask"])


def test_a_generation_config_object_is_obeyed_and_left_alone(llama):
    prompts = padded_prompts()
    config = GenerationConfig(max_new_tokens=6, do_sample=True, top_k=11, num_return_sequences=2, pad_token_id=0)
    before = config.to_dict()
    expected, out = generate_both(llama, **prompts, generation_config=config)
    assert torch.equal(out.sequences, expected)
    assert config.to_dict() == before
    assert_explained_as_existing_text(llama, out, prompts["attention_mask"].repeat_interleave(2, dim=0))


def test_the_models_own_generation_config_is_obeyed_and_left_alone():
    model, prompts = small_llama(), padded_prompts()
    model.generation_config.update(max_new_tokens=5, num_return_sequences=2, num_beams=3, return_dict_in_generate=True)
    before = model.generation_config.to_dict()
    expected, out = generate_both(model, **prompts)
    assert torch.equal(out.sequences, expected.sequences)
    torch.testing.assert_close(out.sequences_scores, expected.sequences_scores)
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2, "do_sample": True}], ids=["greedy", "several samples"])
def test_prompt_embeddings_stand_for_their_token_ids(llama, options):
    prompts = padded_prompts()
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    embeds = llama.get_input_embeddings()(ids).detach()
    with_ids, _ = generate_both(llama, **prompts, max_new_tokens=6, **options)
    expected, out = generate_both(llama, inputs_embeds=embeds, attention_mask=mask, max_new_tokens=6, **options)
    assert torch.equal(out.sequences, expected)
    assert torch.equal(expected, with_ids[:, 9:])
    copies = options.get("num_return_sequences", 1)
    given = explain_sequences(llama, with_ids, 9, mask.repeat_interleave(copies, dim=0))
    assert out.prompt_length == 9
    assert_same_heatmaps(out.attributions, given.attributions)


def test_prompt_embeddings_beside_token_ids_count_once(llama):
    ids = random_ids(2, 6)
    embeds = llama.get_input_embeddings()(ids).detach()
    expected, out = generate_both(llama, input_ids=ids, inputs_embeds=embeds, max_new_tokens=5)
    assert torch.equal(out.sequences, expected)
    assert out.prompt_length == 6
    assert_explained_as_existing_text(llama, out)


def test_embeddings_of_no_token_are_explained_too(llama):
    embeds = torch.randn(1, 7, 48, generator=torch.Generator().manual_seed(0))
    expected, out = generate_both(llama, inputs_embeds=embeds, max_new_tokens=5)
    assert torch.equal(out.sequences, expected)
    assert out.attributions.shape == (1, 5, 12)
    assert (out.attributions[0, :, :7].sum(-1) > 0).all()


def test_a_streamer_gets_the_same_calls(llama):
    streams = [Keep(), Keep()]
    ids = random_ids(1, 8)
    expected = llama.generate(ids, max_new_tokens=6, streamer=streams[0])
    out = explain_generate(llama, ids, max_new_tokens=6, streamer=streams[1])
    assert torch.equal(out.sequences, expected)
    assert streams[0].calls == streams[1].calls
    assert len(streams[1].calls) == 8


def test_a_prompt_without_mask_may_be_positional(llama):
    ids = random_ids(2, 8)
    out = explain_generate(llama, ids, max_new_tokens=5)
    assert torch.equal(out.sequences, llama.generate(ids, max_new_tokens=5))
    assert_explained_as_existing_text(llama, out)


def test_padding_that_generate_infers_itself_is_padding_here_too(llama):
    prompts = padded_prompts()
    expected, out = generate_both(llama, input_ids=prompts["input_ids"], max_new_tokens=5)
    assert torch.equal(out.sequences, expected)
    assert_explained_as_existing_text(llama, out, prompts["attention_mask"])


def test_no_prompt_at_all_starts_from_the_beginning_of_sequence_token(llama):
    expected, out = generate_both(llama, max_new_tokens=5)
    assert torch.equal(out.sequences, expected)
    assert out.prompt_length == 1
    assert_explained_as_existing_text(llama, out)


def test_token_types_are_part_of_the_prompt():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=48, n_layer=3, n_head=4, n_positions=64, initializer_range=0.4, eos_token_id=None)
    model, ids = GPT2LMHeadModel(config).eval(), random_ids(2, 9)
    types = torch.tensor([[3, 3, 3, 4, 4, 4, 4, 5, 5]] * 2)
    expected, out = generate_both(model, input_ids=ids, token_type_ids=types, max_new_tokens=6, pad_token_id=0)
    assert torch.equal(out.sequences, expected)
    plain = explain_sequences(model, out.sequences, 9)
    logits = generate_both(
        model,
        input_ids=ids,
        token_type_ids=types,
        max_new_tokens=6,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )[1].logits
    chosen = torch.stack(logits, 1).gather(-1, expected[:, 9:, None])[..., 0]
    torch.testing.assert_close(out.target_scores, chosen, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain.target_scores, chosen, atol=1e-2)


def write_nothing(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return input_ids


def read_and_write_nothing(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> GenerateDecoderOnlyOutput:
    model(input_ids=input_ids)
    return GenerateDecoderOnlyOutput(sequences=input_ids)


@pytest.mark.filterwarnings("ignore:Calling `generate` with a `custom_generate`")
@pytest.mark.parametrize("loop", [write_nothing, read_and_write_nothing])
def test_a_custom_loop_that_writes_nothing_gives_no_steps(llama, loop):
    ids = random_ids(2, 6)
    out = explain_generate(llama, ids, custom_generate=loop)
    assert torch.equal(out.sequences, ids)
    assert out.attributions.shape == (2, 0, 6)


def test_stop_strings_end_the_text(smollm2):
    model, tokenizer = smollm2
    inputs = tokenizer("One, two, three, four,", return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False, "stop_strings": [" six"], "tokenizer": tokenizer}
    expected, out = generate_both(model, **inputs, **options)
    assert tokenizer.decode(expected[0]).endswith(" six")
    assert torch.equal(out.sequences, expected)
    assert_explained_as_existing_text(model, out)


def test_an_encoding_is_passed_on_as_it_is(smollm2):
    model, tokenizer = smollm2
    tokenizer.padding_side = "left"
    inputs = tokenizer(["The capital of France is", "Water boils at"], return_tensors="pt", padding=True)
    expected, out = generate_both(model, **inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(out.sequences, expected)
    assert_explained_as_existing_text(model, out, inputs["attention_mask"])
