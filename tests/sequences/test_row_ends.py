"""Where a row ends is what `generate` decided, whatever the tokens after it look like."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EosTokenCriteria, LogitsProcessor, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from gradellm_hf import explain_generate, explain_sequences, explain_stream
from gradellm_hf.architecture.facts import look_at
from gradellm_hf.sequences.positions import PositionRoom
from gradellm_hf.sequences.row_ends import RowEnds
from tests.support.small_llama import PAD, assert_same_heatmaps, generate_both, padded_prompts, random_ids, small_llama
from tests.support.versions import CACHE

EOS = 95
WIDTH = 9  # of `padded_prompts`


class EndAfter(StoppingCriteria):
    """Ends each row after its own number of new tokens; the rows of a prompt stand together."""

    def __init__(self, *steps: int):
        self.steps = steps

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        rows = torch.arange(input_ids.shape[0]) // (input_ids.shape[0] // len(self.steps))
        return torch.tensor(self.steps)[rows] == input_ids.shape[1] - WIDTH


class Write(LogitsProcessor):
    """One token only."""

    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([self.token]), 0.0)


def mask_of(lengths: list[int], steps: int) -> list[list[bool]]:
    return [[step < length for step in range(steps)] for length in lengths]


def streamed(model: Any, **kwargs: Any) -> list[list[bool]]:
    return torch.stack([step.step_mask for step in explain_stream(model, **kwargs)], dim=1).tolist()


SPECIAL_TOKENS = {
    "padding is the end of sequence": {"eos_token_id": EOS, "pad_token_id": EOS},
    "padding is something else": {"eos_token_id": EOS, "pad_token_id": PAD},
    "no padding": {"eos_token_id": EOS, "pad_token_id": None},
    "no end of sequence": {"eos_token_id": None, "pad_token_id": PAD},
    "neither": {"eos_token_id": None, "pad_token_id": None},
}


@pytest.mark.parametrize("tokens", SPECIAL_TOKENS.values(), ids=SPECIAL_TOKENS.keys())
@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2, "do_sample": True}], ids=["greedy", "two samples"])
def test_a_row_ends_where_a_stopping_criterion_ends_it(tokens: dict[str, Any], options: dict[str, Any]) -> None:
    model = small_llama()
    kwargs = {**padded_prompts(), "max_new_tokens": 6, "stopping_criteria": [EndAfter(1, 6, 3)], **tokens, **options}
    expected, out = generate_both(model, **kwargs)
    copies = options.get("num_return_sequences", 1)
    mask = mask_of([length for length in (1, 6, 3) for _ in range(copies)], 6)
    assert torch.equal(out.sequences, expected)
    assert out.step_mask.tolist() == mask
    assert streamed(model, **kwargs) == mask
    assert (out.target_scores != 0).tolist() == mask
    assert out.attributions[~out.step_mask].abs().max() == 0
    prompt = torch.cat([out.prompt_mask, torch.tensor(mask)], dim=1).long()
    assert_same_heatmaps(out.attributions, explain_sequences(model, expected, WIDTH, prompt).attributions)


def test_padding_that_the_model_chose_itself_is_no_end() -> None:
    options = {"eos_token_id": EOS, "pad_token_id": PAD, "logits_processor": [Write(PAD)], "max_new_tokens": 4}
    kwargs = {**padded_prompts(), "stopping_criteria": [EndAfter(2, 9, 9)], **options}
    assert explain_generate(small_llama(), **kwargs).step_mask.tolist() == mask_of([2, 4, 4], 4)
    assert streamed(small_llama(), **kwargs) == mask_of([2, 4, 4], 4)


def test_a_criterion_that_stands_in_for_that_of_the_end_of_sequence_decides_alone() -> None:
    options = {"eos_token_id": 13, "pad_token_id": PAD, "logits_processor": [Write(13)], "max_new_tokens": 3}
    ended = explain_generate(small_llama(), **padded_prompts(), **options)
    assert ended.step_mask.tolist() == mask_of([1, 1, 1], 1)
    out = explain_generate(small_llama(), **padded_prompts(), **options, stopping_criteria=[EosTokenCriteria(14)])
    assert out.step_mask.tolist() == mask_of([3, 3, 3], 3)


def test_each_beam_ends_where_it_was_ended() -> None:
    class EndOddTokens(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return input_ids[:, -1] % 5 == 0

    kwargs = {**padded_prompts(), "num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6, "pad_token_id": 5}
    model = small_llama()
    expected, out = generate_both(model, **kwargs, eos_token_id=5, stopping_criteria=[EndOddTokens()])
    assert torch.equal(out.sequences, expected)
    new = expected[:, WIDTH:]
    ends = [next((i + 1 for i, token in enumerate(row) if token % 5 == 0), new.shape[1]) for row in new.tolist()]
    assert out.step_mask.tolist() == mask_of(ends, new.shape[1])
    assert len(set(ends)) > 1


@pytest.mark.usefixtures("quiet_transformers")
def test_everything_that_assisted_decoding_returns_was_written() -> None:
    class EndAtOnce(StoppingCriteria):
        """Asked once for several tokens."""

        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return torch.tensor([input_ids.shape[1] > WIDTH + 1])

    model, draft, ids = small_llama(), small_llama(), random_ids(1, WIDTH)
    draft.generation_config.update(num_assistant_tokens=4, assistant_confidence_threshold=0)
    for end in (EOS, None):
        options = {"max_new_tokens": 12, "assistant_model": draft, "eos_token_id": end, "pad_token_id": EOS}
        expected, out = generate_both(model, input_ids=ids, stopping_criteria=[EndAtOnce()], **options)
        assert torch.equal(out.sequences, expected)
        assert out.step_mask.tolist() == [[True] * (expected.shape[1] - WIDTH)]
        assert expected.shape[1] > WIDTH + 2  # it ended before the last of them


def write_greedily(model: PreTrainedModel, input_ids: Tensor, stopping_criteria: Any, **kwargs: Any) -> Tensor:
    running, new, cache = torch.ones(input_ids.shape[0], dtype=torch.bool), input_ids, kwargs.get(CACHE)
    for _ in range(4):
        outputs = model(input_ids=new, use_cache=True, **{CACHE: cache})
        cache = outputs[CACHE]
        new = torch.where(running, outputs.logits[:, -1].argmax(-1), EOS)[:, None]
        input_ids = torch.cat([input_ids, new], dim=1)
        running = running & ~stopping_criteria(input_ids, None)
    return input_ids


def write_greedily_in_a_way_of_its_own(model: PreTrainedModel, input_ids: Tensor, **kwargs: Any) -> Tensor:
    criteria = kwargs.pop("stopping_criteria")

    def one_by_one(input_ids: Tensor, scores: Any) -> Tensor:
        return torch.stack([criterion(input_ids, scores) for criterion in criteria]).any(0)

    return write_greedily(model, input_ids, one_by_one, **kwargs)


@pytest.mark.filterwarnings("ignore:Calling `generate` with a `custom_generate`")
def test_a_custom_loop_that_asks_the_criteria_ends_rows_as_they_say() -> None:
    kwargs = {"input_ids": random_ids(2, WIDTH), "max_new_tokens": 4, "eos_token_id": EOS, "pad_token_id": EOS}
    kwargs |= {"custom_generate": write_greedily, "stopping_criteria": StoppingCriteriaList([EndAfter(2, 9)])}
    assert explain_generate(small_llama(), **kwargs).step_mask.tolist() == mask_of([2, 4], 4)


@pytest.mark.filterwarnings("ignore:Calling `generate` with a `custom_generate`")
def test_a_custom_loop_that_asks_no_list_of_criteria_ends_rows_at_the_end_of_sequence() -> None:
    kwargs = {"input_ids": random_ids(2, WIDTH), "max_new_tokens": 4, "eos_token_id": EOS, "pad_token_id": EOS}
    kwargs |= {"custom_generate": write_greedily_in_a_way_of_its_own, "stopping_criteria": [EndAfter(2, 9)]}
    assert explain_generate(small_llama(), **kwargs).step_mask.tolist() == mask_of([3, 4], 4)


def test_the_list_of_the_caller_stays_as_it_is() -> None:
    criteria = StoppingCriteriaList([EndAfter(1, 2, 3)])
    explain_generate(small_llama(), **padded_prompts(), max_new_tokens=2, stopping_criteria=criteria, pad_token_id=PAD)
    assert len(criteria) == 1


def asked(ends: RowEnds, ids: Tensor, decided: list[bool]) -> None:
    criteria = StoppingCriteriaList([lambda ids, scores: torch.tensor(decided), ends])
    assert type(criteria(ids, None)) is Tensor
    assert criteria(ids, None).tolist() == decided


def test_what_was_decided_about_other_rows_is_not_taken() -> None:
    ids = random_ids(2, 5)
    ends = RowEnds(3, PositionRoom(look_at(small_llama()), 3))
    assert ends.step_mask(ids) is None
    asked(ends, ids[:, :4], [True, False])
    asked(ends, ids, [False, False])
    assert ends.step_mask(ids).tolist() == [[True, False], [True, True]]
    assert ends.step_mask(ids[:, :4]).tolist() == [[True], [True]]  # written so far
    assert ends.step_mask(torch.cat([ids, ids[:, :1]], dim=1)).tolist() == [[True, False, False], [True, True, True]]
    assert ends.step_mask(ids.flip(0)) is None
    assert ends.step_mask(ids[:1]) is None
    asked(ends, torch.cat([ids.flip(0), ids[:, :1]], dim=1), [False, False])  # the rows have changed their places
    assert ends.step_mask(torch.cat([ids.flip(0), ids[:, :1]], dim=1)) is None


@pytest.mark.parametrize("others", [random_ids(3, 6), random_ids(2, 3)], ids=["another number of rows", "shorter rows"])
def test_criteria_that_are_asked_about_something_else_meanwhile_decide_nothing(others: Tensor) -> None:
    ids = random_ids(2, 5)
    ends = RowEnds(3, PositionRoom(look_at(small_llama()), 3))
    asked(ends, ids[:, :4], [True, False])
    asked(ends, others, [False] * len(others))
    assert ends.step_mask(others) is None
    asked(ends, ids, [False, False])
    assert ends.step_mask(ids) is None


def test_a_batch_that_a_stop_string_ends_row_by_row(smollm2: Any) -> None:
    model, tokenizer = smollm2
    tokenizer.padding_side = "left"
    prompts = tokenizer(["One, two, three, four,", "The capital of Italy is"], return_tensors="pt", padding=True)
    kwargs = {**prompts, "max_new_tokens": 4, "do_sample": False, "stop_strings": [" six"], "tokenizer": tokenizer}
    for options in ({}, {"pad_token_id": None}, {"eos_token_id": None}):
        out = explain_generate(model, **kwargs, **options)
        assert out.step_mask.tolist() == mask_of([3, 4], 4)
        six, rome = out.explanations(tokenizer)
        assert six.text == "One, two, three, four, five, six"
        assert rome.text.startswith("The capital of Italy is Rome")
        assert len(six.attributions) == len(six.token_probabilities) == 3
        assert streamed(model, **kwargs, **options) == mask_of([3, 4], 4)
