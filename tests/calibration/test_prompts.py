"""The prompts that the package ships for calibration: what everything that reads them relies on."""

import json
import re
from collections import Counter
from importlib.resources import files
from statistics import median

import pytest

from gradellm_hf.jobs.prompts import PromptReader
from tests.support import ROOT

_FILE = files("gradellm_hf.calibration") / "prompts.jsonl"
_LINES = _FILE.read_bytes().decode("utf-8").splitlines()
_RECORDS = [json.loads(line) for line in _LINES]
_KINDS = ("facts", "news", "dialogue", "instructions", "code", "tables", "reasoning", "classification")
_JUDGED_BY = ROOT / "benchmarks" / "faithfulness" / "prompts.jsonl"


def _text(record):
    return record["prompt"] if "prompt" in record else "\n".join(message["content"] for message in record["messages"])


def _runs_of_words(text, length):
    words = re.findall(r"\w+", text.casefold())
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}


def _numbers_of_words():
    return sorted(len(_text(record).split()) for record in _RECORDS)


def test_there_are_at_least_forty_prompts_of_each_of_eight_kinds():
    counts = Counter(record["kind"] for record in _RECORDS)
    assert set(counts) == set(_KINDS)
    assert min(counts.values()) >= 40


def test_ids_are_unique_and_count_up_within_the_kind():
    numbers = Counter()
    for record in _RECORDS:
        numbers[record["kind"]] += 1
        assert record["id"] == f"{record['kind']}-{numbers[record['kind']]:03d}"


def test_each_line_is_one_json_object_with_its_fields_sorted_and_its_letters_unescaped():
    for line, record in zip(_LINES, _RECORDS, strict=True):
        assert line == json.dumps(record, ensure_ascii=False, sort_keys=True), record["id"]
        assert list(record) in (["id", "kind", "messages"], ["id", "kind", "prompt"]), record["id"]


def test_no_text_has_spaces_at_its_ends_or_odd_characters():
    for record in _RECORDS:
        for text in [record["prompt"]] if "prompt" in record else [message["content"] for message in record["messages"]]:
            assert text == text.strip() != "", record["id"]
            assert not re.search(r"[^\S \n\t]|[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\ufeff\ufffd]", text), record["id"]


def test_chats_alternate_and_end_with_the_user_behind_at_most_one_system_message():
    for record in _RECORDS:
        if "messages" in record:
            roles = [message["role"] for message in record["messages"]]
            assert re.fullmatch("(system )?(user assistant )*user", " ".join(roles)), record["id"]
            assert all(list(message) == ["content", "role"] for message in record["messages"]), record["id"]


@pytest.mark.parametrize("kind", _KINDS)
def test_about_six_in_ten_prompts_of_each_kind_are_text_to_continue(kind):
    raw = ["prompt" in record for record in _RECORDS if record["kind"] == kind]
    assert 0.5 <= sum(raw) / len(raw) <= 0.7


def test_lengths_are_spread_from_twenty_words_to_three_hundred_and_eighty():
    lengths = _numbers_of_words()
    assert lengths[0] >= 20
    assert lengths[-1] <= 380
    assert sum(length < 40 for length in lengths) >= 15
    assert 60 <= median(lengths) <= 150
    assert sum(length > 150 for length in lengths) >= 30
    assert sum(length > 300 for length in lengths) >= 3


def test_about_one_prompt_in_ten_has_letters_beyond_ascii():
    share = sum(not _text(record).isascii() for record in _RECORDS) / len(_RECORDS)
    assert 0.08 <= share <= 0.15


def test_no_two_prompts_share_eight_words_in_a_row():
    """So no text occurs twice, and none is a template whose slots were filled anew."""
    runs = Counter(run for record in _RECORDS for run in _runs_of_words(_text(record), 8))
    assert [run for run, count in runs.items() if count > 1] == []


def test_no_more_than_three_prompts_begin_with_the_same_four_words():
    beginnings = Counter(" ".join(re.findall(r"\w+", _text(record).casefold())[:4]) for record in _RECORDS)
    assert [beginning for beginning, count in beginnings.items() if count > 3] == []


def test_they_share_no_eight_words_in_a_row_with_the_prompts_that_the_evidence_judges_by():
    judged_by = [json.loads(line) for line in _JUDGED_BY.read_text(encoding="utf-8").splitlines()]
    held_out = {run for record in judged_by for run in _runs_of_words(_text(record), 8)}
    assert len(held_out) > 5000
    assert {record["id"] for record in _RECORDS if _runs_of_words(_text(record), 8) & held_out} == set()


def test_the_prompt_reader_reads_them_with_their_ids_and_kinds():
    reader = PromptReader(_FILE, fields=("kind",))
    prompts = [reader[index] for index in range(len(reader))]
    assert [prompt.id for prompt in prompts] == [record["id"] for record in _RECORDS]
    assert [prompt.fields["kind"] for prompt in prompts] == [record["kind"] for record in _RECORDS]
    assert [prompt.content for prompt in prompts] == [record.get("prompt", record.get("messages")) for record in _RECORDS]
