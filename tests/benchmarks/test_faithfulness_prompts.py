"""The prompts of the faithfulness evidence: what everything that reads them relies on."""

import json
import re
from collections import Counter

import pytest

from tests.support import ROOT

_FILE = ROOT / "benchmarks" / "faithfulness" / "prompts.jsonl"
_RECORDS = [json.loads(line) for line in _FILE.read_text(encoding="utf-8").splitlines()]
_SPLITS = ("report", "tune")


def _text(record):
    return record["prompt"] if "prompt" in record else record["messages"][0]["content"]


def _sentences(split):
    """Those of four words or more; shorter ones are labels, such as `Sentiment:`."""
    parts = (part.strip() for record in _RECORDS if record["split"] == split for part in re.split(r"[.?!:\n]+", _text(record)))
    return {part for part in parts if len(part.split()) >= 4}


def test_ids_are_unique_and_name_the_task():
    ids = [record["id"] for record in _RECORDS]
    assert len(set(ids)) == len(ids)
    assert [id for id, record in zip(ids, _RECORDS, strict=True) if not re.fullmatch(rf"{record['task']}-\d{{3}}", id)] == []


def test_each_task_has_50_prompts_to_report_and_15_to_tune_on():
    tasks = ("sentiment", "yes_no", "recall", "open")
    counts = Counter((record["task"], record["split"]) for record in _RECORDS)
    assert counts == {(task, split): number for task in tasks for split, number in zip(_SPLITS, (50, 15), strict=True)}


def test_no_text_occurs_twice():
    assert [text for text, count in Counter(_text(record).casefold() for record in _RECORDS).items() if count > 1] == []


def test_report_and_tune_share_no_sentence():
    report, tune = map(_sentences, _SPLITS)
    assert len(tune) > 100
    assert report & tune == set()


def test_every_record_has_the_fields_of_its_task_in_order():
    """Text to continue for recall, otherwise one user message; no answer if generation is open."""
    for record in _RECORDS:
        text_field = "prompt" if record["task"] == "recall" else "messages"
        answered = ["answer", "rationale"] if record["task"] != "open" else []
        assert list(record) == ["id", "task", "split", text_field, *answered], record["id"]
        if text_field == "messages":
            assert record["messages"] == [{"role": "user", "content": _text(record)}], record["id"]
        assert _text(record) == _text(record).strip() != "", record["id"]


def test_rationales_are_whole_words_in_the_order_of_the_text():
    for record in _RECORDS:
        text, previous_end = _text(record), 0
        assert record.get("rationale") != [], record["id"]
        for start, end in record.get("rationale", []):
            assert previous_end <= start < end <= len(text), record["id"]
            assert re.fullmatch(r"\w(.*\w)?", text[start:end]), (record["id"], text[start:end])
            assert not re.search(r"\w$", text[:start]), record["id"]
            assert not re.match(r"\w", text[end : end + 1]), record["id"]
            previous_end = end


def test_a_recall_prompt_states_its_answer_once_and_marks_it_with_its_key():
    for record in (record for record in _RECORDS if record["task"] == "recall"):
        words = [record["prompt"][start:end] for start, end in record["rationale"]]
        assert len(words) == 2, record["id"]
        assert record["answer"] in words, record["id"]
        assert len(re.findall(rf"\b{re.escape(record['answer'])}\b", record["prompt"])) == 1, record["id"]


@pytest.mark.parametrize("split", _SPLITS)
@pytest.mark.parametrize(("task", "answers"), [("sentiment", ("positive", "negative")), ("yes_no", ("yes", "no"))])
def test_answers_are_balanced(task, answers, split):
    counts = Counter(record["answer"] for record in _RECORDS if (record["task"], record["split"]) == (task, split))
    assert set(counts) == set(answers)
    assert all(0.4 <= count / counts.total() <= 0.6 for count in counts.values())
