"""The evidence, in small: parts run and continued on a tiny model, and the tables that are made of them."""

import argparse
import json

import pytest

from benchmarks.faithfulness import report, run
from gradellm_hf.methods import get_method
from tests.support.evaluated import model_and_tokenizer

pytestmark = pytest.mark.slow

METHODS = {name: get_method(name) for name in ("grad_ellm", "attention_mean", "random")}
#: What the parts of this family call its learned methods; here these are others, of which two are the same.
METHODS |= {"calibrated": get_method("attention_mean"), "at2": get_method("random")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of three parts of one family."""
    model, tokenizer = model_and_tokenizer()
    folder, options = tmp_path_factory.mktemp("evidence"), argparse.Namespace(lambada=None, max_prompts=2)
    for part in ("own", "known", "ablation_report"):
        done = run.run_part(part, model, tokenizer, METHODS, options, folder / "tiny" / part)
        assert (len(done), done.errors) == (2, {})
        assert not any(done.method_errors(method) for method in done.methods)
        assert not any(done.metric_errors(metric) for metric in done.metrics)
        again = run.run_part(part, model, tokenizer, METHODS, options, folder / "tiny" / part)
        assert again.records == done.records
    return folder


def test_every_part_says_what_it_measures():
    assert all(set(part.metrics) & {*run.PRIMARY, *run.KNOWN_SOURCE} for part in run.PARTS.values())
    assert set(run.PRIMARY) <= set(run.PARTS["own"].metrics) & set(run.PARTS["lambada"].metrics)


def test_a_model_without_a_chat_template_gets_text():
    chats, texts = run.read_prompts(), run.read_prompts(chat=False)
    assert any("messages" in record for record in chats)
    assert all(isinstance(record["prompt"], str) and "messages" not in record for record in texts)
    assert [record["id"] for record in chats] == [record["id"] for record in texts]


def test_the_report_has_a_table_of_primary_metrics_for_each_part_and_task(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(report, "PICTURES", tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "--output", str(folder)])
    report.main()
    text = (tmp_path / "RESULTS.md").read_text()
    assert "The best of a column" in text
    header = "| method | s / token | x generate | lds_source \u2191 | top_1_drop \u2191 | rank_correlation \u2191 |"
    assert header in text.split("## tiny: own")[1].split("## tiny")[0]
    assert "reciprocal_rank \u2191" in text.split("## tiny: known")[1]
    assert "## tiny: ablation, 2 reported prompts" in text
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {(row["family"], row["part"]) for row in rows} == {("tiny", part) for part in ("own", "known", "ablation_report")}
    assert (tmp_path / "faithfulness_costs_tiny_own.png").stat().st_size > 0


def test_what_head_weights_add_is_said_for_each_rival_on_the_same_prompts(folder):
    own = report.load_evaluation(folder / "tiny" / "own")
    gains = report._gains({("tiny", "own"): own, ("tiny", "known"): report.load_evaluation(folder / "tiny" / "known")})
    lines = (line.strip("| ").split(" | ") for line in gains.splitlines() if "tiny" in line)
    cells = {metric: cells for metric, where, *cells in lines}
    assert list(cells) == [*run.PRIMARY, "pearson_correlation"]  # of the part that measures them all
    for metric, (over_default, over_attention, over_at2) in cells.items():
        mean = dict(zip(own.methods, own.values(metric).nanmean(-1).tolist()))
        assert over_attention == "+0.000 [+0.000, +0.000]"
        for cell, rival in ((over_default, "grad_ellm"), (over_at2, "at2")):
            assert float(cell.strip("*").split()[0].strip("*")) == pytest.approx(mean["calibrated"] - mean[rival], abs=6e-4)


def test_differences_are_corrected_for_methods_times_primary_metrics(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(report, "summarise", lambda evaluation, **options: asked.append(options))
    for part in ("own", "known", "ablation_report"):
        report.summarised(part, report.load_evaluation(folder / "tiny" / part))
    own, known, ablation = asked
    assert own == {"reference": "grad_ellm", "comparisons": 4 * 3}
    assert known == {"reference": "grad_ellm", "comparisons": 4 * 1}
    assert ablation == {"reference": "relu_per_head", "comparisons": (len(run.PARTS["ablation_report"].methods) - 1) * 2}
