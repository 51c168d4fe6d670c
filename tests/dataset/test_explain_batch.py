"""`ExplainBatch`: rows with prompts in, rows with explained answers out, in this process and in the engines that call it."""

import functools
import pickle
import subprocess
import sys

import datasets
import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets.fingerprint import Hasher

from gradellm_hf import ExplainBatch, GradELLM, GradELLMConfig, InvalidInputError
from gradellm_hf.dataset.rows import new_columns
from tests.support import ROOT
from tests.support.dataset_job import texts, tiny_llama, write_job
from tests.support.ray_pool import ROWS, rows
from tests.support.tiny_tokenizers import byte_level_bpe


@functools.cache
def explainer() -> GradELLM:
    return GradELLM(tiny_llama(), byte_level_bpe())


def explained(batch, **options):
    return ExplainBatch(explainer, **{"max_new_tokens": 4, "batch_size": 3, **options})(batch)


def assert_is_the_explanation(row, explanation, keep):
    """A row beside the explanation of its prompt alone."""
    assert (row["answer"], row["error"]) == (explanation.answer, None)
    assert (row["tokens"], row["token_ids"]) == (explanation.tokens, explanation.token_ids)
    assert row["prompt_length"] == explanation.prompt_length
    torch.testing.assert_close(torch.tensor(row["token_probabilities"]), explanation.token_probabilities, rtol=1e-4, atol=1e-6)
    largest, compact = explanation.attributions.max().item(), explanation.compact(keep)
    each = zip(row["positions"], row["scores"], row["rest"], explanation.attributions, compact.attributions)
    for positions, scores, rest, whole, kept in each:
        assert sorted(positions) == kept.nonzero().flatten().tolist()
        assert scores == sorted(scores, reverse=True)
        torch.testing.assert_close(torch.tensor(scores), whole[positions], rtol=1e-4, atol=1e-4 * largest)
        assert sum(scores) + rest == pytest.approx(whole.sum().item(), rel=1e-4)


def test_each_row_gets_what_its_prompt_alone_gets_and_a_bad_one_its_error():
    prompts = [*texts(4), "", *texts(7)[5:]]
    table = explained({"name": list("abcdefg"), "prompt": prompts}, keep=3, sources=["word", "token"], of="answer")
    assert table.column_names == ["name", "prompt", *new_columns()]
    found = table.to_pylist()
    assert [row["name"] for row in found] == list("abcdefg")
    for row, prompt in zip(found, prompts, strict=True):
        if not prompt:
            assert row["error"].startswith("InvalidInputError: The prompt is empty")
            assert all(row[name] is None for name in new_columns() if name != "error")
            continue
        alone = explainer().explain(prompt, max_new_tokens=4)
        assert_is_the_explanation(row, alone, 3)
        assert [part["by"] for part in row["sources"]] == ["word", "token"]
        for part in row["sources"]:
            (expected,) = alone.sources(part["by"], of="answer").to_dict()["parts"]
            assert part["sources"][0]["text"] == expected["sources"][0]["text"]
            assert part["sources"][0]["share"] == pytest.approx(expected["sources"][0]["share"], rel=1e-3)
            assert {kind["kind"] for kind in part["ignored"]} == set(expected["ignored"])


def test_every_kind_of_batch_is_read_and_its_other_columns_stay_as_they_are():
    times = numpy.array(["2024-05-01", "2024-05-02"], "datetime64[ns]")
    columns = {"prompt": texts(2), "time": times, "picture": numpy.arange(8).reshape(2, 2, 2)}
    lists = {**columns, "picture": columns["picture"].tolist()}
    kinds = [columns, lists, pandas.DataFrame(lists), pyarrow.table(lists)]
    for table in [explained(batch, sources=()) for batch in kinds]:
        assert table["time"].type == pyarrow.timestamp("ns")
        assert table["picture"].to_pylist() == lists["picture"]
        assert table["answer"].to_pylist() == [explainer().explain(text, max_new_tokens=4).answer for text in texts(2)]


def test_chats_are_read_as_arrow_has_them(monkeypatch):
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    monkeypatch.setattr(explainer().tokenizer, "chat_template", template, raising=False)
    chats = [[{"role": "user", "content": text}] for text in texts(3)]
    arrays = numpy.array([None, None, None], object)
    arrays[:] = [numpy.array(chat, object) for chat in chats]
    for batch in ({"chat": arrays}, pyarrow.table({"chat": chats})):
        table = explained(batch, sources="message", keep=2)
        assert table["error"].null_count == 3
        for tokens, text in zip(table["tokens"].to_pylist(), texts(3), strict=True):
            assert "".join(tokens).startswith(f"user: {text}\n")


def test_sampling_depends_on_the_seed_and_on_the_batch_and_not_on_what_was_done_before():
    options = {"do_sample": True, "max_new_tokens": 6, "num_return_sequences": 2, "sources": ()}
    explain = ExplainBatch(explainer, **options)
    first = explain({"prompt": texts(3)})
    assert first["prompt"].to_pylist() == [text for text in texts(3) for _ in range(2)]
    explain({"prompt": texts(5)})
    assert explain({"prompt": texts(3)}).equals(first)
    assert pickle.loads(pickle.dumps(explain))({"prompt": texts(3)}).equals(first)
    other = ExplainBatch(explainer, seed=1, **options)({"prompt": texts(3)})
    assert other["answer"].to_pylist() != first["answer"].to_pylist()


@pytest.mark.parametrize(
    ("options", "batch", "reason"),
    [
        ({"model": lambda: 3}, {"prompt": ["Rome"]}, "must return a GradELLM, got int"),
        ({"model": lambda: GradELLM(tiny_llama())}, {"prompt": ["Rome"]}, "no tokenizer"),
        ({"column": "question"}, {"prompt": ["Rome"]}, r"no column 'question'; they have \['prompt'\]"),
        ({}, {"prompt": ["Rome"], "answer": ["no"]}, r"have columns \['answer'\] already.*prefix"),
        ({"max_new_token": 3}, {"prompt": ["Rome", "Italy"]}, "No prompt can be explained with these arguments.*max_new_token"),
        ({"explain_config": GradELLMConfig(layers=9)}, {"prompt": ["Rome"]}, "No prompt can be explained.*5 attention layers"),
        ({}, ["Rome"], "batched=True"),
    ],
)
def test_what_is_wrong_with_all_rows_is_an_error_of_the_call(options, batch, reason):
    explain = ExplainBatch(**{"model": explainer, "max_new_tokens": 2, **options})
    with pytest.raises(InvalidInputError, match=reason):
        explain(batch)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": 3}, "got int"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"keep": 0}, "keep"),
        ({"seed": "x"}, "seed"),
        ({"sources": "book"}, "sources"),
        ({"sources": ["word", 3]}, "sources"),
        ({"of": "chapter"}, "of"),
        ({"prefix": None}, "prefix"),
    ],
    ids=str,
)
def test_arguments_are_checked_where_they_are_given(options, reason):
    with pytest.raises(InvalidInputError, match=reason):
        ExplainBatch(**{"model": "no such model", **options})


def test_a_model_in_memory_is_refused_with_a_way_out():
    with pytest.raises(InvalidInputError, match=r"lambda: explainer"):
        ExplainBatch(explainer())


def test_in_map_of_datasets_it_works_as_it_is_and_is_recognised(tmp_path):
    write_job(tmp_path, 1)
    data = datasets.Dataset.from_list(rows()[70:82])
    explain = ExplainBatch(str(tmp_path / "model"), max_new_tokens=3, batch_size=2, keep=2)
    before = Hasher.hash(explain)
    found = data.map(explain, batched=True, batch_size=4)
    assert Hasher.hash(explain) == before, "`datasets` would not find what it has in its cache"
    assert found["number"][:] == list(range(70, 82))
    assert [row["error"] is None for row in found] == [i != 77 for i in range(70, 82)]
    for row in found:
        if row["error"] is None:
            assert_is_the_explanation(row, explainer().explain(row["prompt"], max_new_tokens=3), 2)
    found.to_parquet(tmp_path / "explained.parquet")
    assert pyarrow.parquet.read_schema(tmp_path / "explained.parquet").field("positions").type == new_columns()["positions"]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ray_actors_of_which_one_is_killed_explain_every_prompt_once_as_a_loop_does(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed, and has no wheel for every Python and system")
    write_job(tmp_path, 1)
    command = [sys.executable, "-m", "tests.support.ray_pool", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    marks = [path.name for path in (tmp_path / "marks").iterdir()]
    assert "killed" in marks
    assert len({name.split("-")[0] for name in marks} - {"killed"}) >= 2, f"{marks}: more than one actor should have worked"
    found = pyarrow.parquet.read_table(tmp_path / "explained").sort_by("number").to_pylist()
    assert [row["number"] for row in found] == list(range(ROWS)), "a prompt is missing, or there twice"
    failed, *others = sorted(zip(found, rows(), strict=True), key=lambda pair: pair[1]["prompt"] != "")
    assert failed[0]["error"].startswith("InvalidInputError: The prompt is empty")
    for start in range(0, len(others), 20):
        part = others[start : start + 20]
        for (row, _), alone in zip(part, explainer().explain([asked["prompt"] for _, asked in part], max_new_tokens=6)):
            assert_is_the_explanation(row, alone, 4)
