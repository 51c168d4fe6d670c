"""Prompts whose right source is known: what they say, where it is, and how an evaluation reads them."""

import calendar
import re

import pytest
import torch

from gradellm_hf import InvalidInputError
from gradellm_hf.evaluation import contradictions, evaluate, injections, needles
from gradellm_hf.evaluation.texts import FIELDS, read_text
from gradellm_hf.jobs.prompts import Prompt, PromptReader
from gradellm_hf.model import GradELLM
from tests.support.evaluated import model_and_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return model_and_tokenizer()[1]


def places(record, field):
    return [record["prompt"][start:end] for start, end in record[field]]


def all_kinds(tokenizer, **options):
    return [*needles(tokenizer, lengths=[150], **options), *contradictions(**options), *injections(**options)]


def test_the_marked_source_is_the_only_one_with_the_answer(tokenizer):
    records = all_kinds(tokenizer, num_prompts=6)
    assert len({record["id"] for record in records}) == len(records) == 6 * (3 + 2 + 1)
    for record in records:
        (right,) = places(record, "rationale")
        holders = [source for source in places(record, "sources") if record["target"] in source]
        assert len(holders) == 1
        assert right in holders[0]
        assert record["target"] not in record["prompt"][record["sources"][-1][1] :]  # nor is it in the question


def test_needles_ask_for_one_of_several_facts_of_the_same_form(tokenizer):
    for record in needles(tokenizer, lengths=[150], num_distractors=5, num_prompts=3):
        (right,) = places(record, "rationale")
        asked = re.search(r"Who is (the keeper of the .*)\?", record["prompt"]).group(1)
        assert right.startswith(asked[0].upper() + asked[1:])
        assert record["prompt"].endswith(f"{asked[0].upper()}{asked[1:]} is")
        assert sum(source.startswith("The keeper of") for source in places(record, "sources")) == 6


def test_needles_have_the_length_and_the_place_that_were_asked_for(tokenizer):
    for record in needles(tokenizer, lengths=[200, 400], depths=[0.0, 0.5, 1.0], num_prompts=2):
        length, depth = re.fullmatch(r"needle (\d+) at (.*)", record["task"]).groups()
        tokens = len(tokenizer(record["prompt"])["input_ids"])
        assert int(length) - 2 <= tokens <= int(length) + 50  # this tokenizer has some 40 tokens for a sentence
        position = record["sources"].index(record["rationale"][0])
        assert position == round(float(depth) * (len(record["sources"]) - 1))


def test_the_later_of_two_notices_has_the_answer(tokenizer):
    months = list(calendar.month_name)
    for record in contradictions(num_prompts=5):
        notices = places(record, "sources")
        dates = [months.index(re.match(r"Notice of (\w+):", notice).group(1)) for notice in notices]
        counts = dates.index(max(dates))
        assert places(record, "rationale")[0] in notices[counts]
        assert record["task"] == f"contradiction, {['first', 'second'][counts]} counts"


def test_the_same_seed_makes_the_same_prompts_and_another_one_others(tokenizer):
    first, again, other = (all_kinds(tokenizer, num_prompts=2, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert all(a["prompt"] != b["prompt"] for a, b in zip(first, other))
    more = needles(tokenizer, lengths=[100, 150], num_prompts=3, seed=1)
    assert [record for record in first if record["task"].startswith("needle")] == [
        record for record in more if "150" in record["task"] and not record["id"].endswith(", 2")
    ]


def test_an_evaluation_has_the_sources_of_the_record_and_ranks_the_right_one(tokenizer, tmp_path):
    model = model_and_tokenizer()[0]
    record = {"prompt": "by the sea. one day, the king. what", "target": " was", "sources": [[0, 11], [12, 20], [21, 30]]}
    record["rationale"] = [[12, 15]]
    (prompt,) = PromptReader([record], None, FIELDS)
    assert isinstance(prompt, Prompt)
    text = read_text(GradELLM(model, tokenizer), prompt, True, {})
    pieces = [tokenizer.decode(i) for i in text.sequences[0, : text.prompt_length]]
    found = {n: "".join(piece for piece, source in zip(pieces, text.sources) if source == n).strip() for n in (-1, 0, 1, 2)}
    assert found == {-1: "what", 0: "by the sea.", 1: "one day,", 2: "the king."}

    def method(model, sequences, prompt_length, attention_mask=None, *, sources):
        scores = torch.zeros(1, sequences.shape[1] - prompt_length, sequences.shape[1])
        scores[..., :prompt_length] = torch.tensor([5.0, 2.0, 0.0, 9.0])[sources] / (sources[:, None] == sources).sum(0)
        return scores

    options = {"tokenizer": tokenizer, "methods": {"mine": method}, "metrics": ["reciprocal_rank", "recall_at_1"]}
    done = evaluate(model, [record], tmp_path, **options)
    assert (done.values("reciprocal_rank").item(), done.values("recall_at_1").item()) == (0.5, 0)


def test_sources_that_are_no_places_are_an_error_of_the_prompt(tokenizer, tmp_path):
    model = model_and_tokenizer()[0]
    prompts = [{"prompt": "by the sea", "sources": bad} for bad in ("by", [[0, 99]], [])]
    done = evaluate(model, prompts, tmp_path, tokenizer=tokenizer, methods=["random"], metrics=["lds_source"])
    assert "`sources` must be a list of [start, end]" in done.errors[0]
    assert "`sources` [[0, 99]] does not lie in its text" in done.errors[1]
    assert "no source that may be taken out" in done.metric_errors("lds_source")[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": []}, "`lengths` must be a list"),
        ({"lengths": [0]}, "`lengths` must be an int of at least 1"),
        ({"depths": [2.0]}, "`depths` must be shares"),
        ({"num_prompts": 0}, "`num_prompts` must be an int of at least 1"),
        ({"num_distractors": 12}, "`num_distractors` must be an int from 0 to 11"),
        ({"seed": "a"}, "`seed` must be an int"),
    ],
)
def test_numbers_out_of_range_are_refused(tokenizer, options, message):
    with pytest.raises(InvalidInputError, match=message):
        needles(tokenizer, **options)
