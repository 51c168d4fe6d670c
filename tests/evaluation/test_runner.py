"""`evaluate`: methods and metrics on prompts, stopped and continued, summarised and drawn."""

import copy
import json

import pytest
import torch

from gradellm_hf import InvalidInputError
from gradellm_hf.evaluation import METRICS, Settings, evaluate, load_evaluation, merge, summarise
from gradellm_hf.evaluation.plots import plot_costs, plot_curves
from gradellm_hf.evaluation.texts import read_text
from gradellm_hf.jobs.processes import only_writer
from gradellm_hf.jobs.prompts import Prompt
from gradellm_hf.methods import get_method
from gradellm_hf.metrics import (
    agreement,
    bootstrap,
    deletion,
    linear_datamodelling_score,
    normalised_area,
    pearson_correlation,
    pi_soft_ns,
    rank_correlation,
    top_k_drop,
)
from gradellm_hf.model import GradELLM
from tests.support.evaluated import PROMPTS, model_and_tokenizer

pytestmark = pytest.mark.slow

METHODS = ["grad_ellm", "saliency", "random"]
SETTINGS = Settings(pis=(0.3, 0.7), num_portions=3, seed=5)


@pytest.fixture(scope="module")
def llama_and_tokenizer():
    return model_and_tokenizer()


@pytest.fixture(scope="module")
def llama(llama_and_tokenizer):
    return llama_and_tokenizer[0]


@pytest.fixture(scope="module")
def tokenizer(llama_and_tokenizer):
    return llama_and_tokenizer[1]


@pytest.fixture(scope="module")
def evaluation(llama, tokenizer, tmp_path_factory):
    """All metrics of three methods on four prompts."""
    folder = tmp_path_factory.mktemp("evaluation")
    return evaluate(llama, PROMPTS, folder, tokenizer=tokenizer, methods=METHODS, settings=SETTINGS, max_new_tokens=2)


def measured(evaluation):
    """All that does not depend on the clock."""
    return {i: (r["id"], r["task"], r["continuation"], r["values"], r["errors"]) for i, r in evaluation.records.items()}


def test_every_value_is_what_the_metric_gives_for_that_text(evaluation, llama, tokenizer):
    assert len(evaluation) == evaluation.num_prompts == 4
    assert evaluation.errors == {}
    for index in (0, 2):
        record = PROMPTS[index]
        ids = tokenizer(record["prompt"], return_tensors="pt").input_ids
        if "target" in record:
            sequences = torch.cat([ids, tokenizer(record["target"], return_tensors="pt").input_ids], dim=1)
        else:
            sequences = llama.generate(ids, max_new_tokens=2, do_sample=False)
        for method in ("grad_ellm", "saliency"):
            heatmap = get_method(method)(llama, sequences, ids.shape[1])
            generator = SETTINGS.generator(index)
            curve = pi_soft_ns(llama, sequences, ids.shape[1], heatmap, pis=SETTINGS.pis, generator=generator, num_samples=1)[0]
            generator = SETTINGS.generator(index)
            area = deletion(llama, sequences, ids.shape[1], heatmap, num_portions=3, generator=generator, removal="drop")[0]
            values = evaluation.records[index]["values"]
            torch.testing.assert_close(torch.tensor(values["pi_soft_ns"][method]).double(), curve, rtol=1e-5, atol=1e-6)
            assert values["deletion_drop"][method] == pytest.approx(area.item(), rel=1e-5)


def test_every_metric_has_a_value_of_every_method_where_it_is_defined(evaluation):
    for metric, properties in METRICS.items():
        values = evaluation.values(metric)
        assert values.shape == ((3, 4, 2) if properties.is_curve else (3, 4))
        assert values[:, 0].isfinite().all(), metric  # the prompt with a rationale


def test_metrics_by_sentence_take_the_sentences_of_the_prompt(llama, tokenizer, tmp_path):
    texts, marked = ["The old king. ", "By the sea. ", "One day. ", "His people"], 2
    begin = sum(map(len, texts[:marked]))
    record = {"prompt": "".join(texts), "rationale": [[begin + 4, begin + 7]]}
    ids = tokenizer(record["prompt"], return_tensors="pt").input_ids
    offsets = [len(tokenizer.decode(ids[0, :i])) for i in range(ids.shape[1])]
    ends = [sum(map(len, texts[: k + 1])) - 1 for k in range(3)]  # a token's leading space belongs to the sentence after it
    sources = torch.tensor([sum(offset >= end for end in ends) for offset in offsets])
    assert sources.max() == 3
    given = []

    def method(model, sequences, prompt_length, attention_mask=None, *, sources=sources):
        scores = torch.zeros(1, sequences.shape[1] - prompt_length, sequences.shape[1])
        scores[..., : ids.shape[1]] = torch.tensor([4.0, 1.0, 2.0, 3.0])[sources] / sources.bincount()[sources]
        given.append(sources)
        return scores

    names = ["reciprocal_rank", "recall_at_1", "recall_at_3", "lds_source", "lds_source_drop", "top_3_drop"]
    options = {"tokenizer": tokenizer, "methods": {"mine": method}, "metrics": names, "settings": SETTINGS}
    values = {
        name: found["mine"] for name, found in evaluate(llama, [record], tmp_path, **options).records[0]["values"].items()
    }
    assert (values["reciprocal_rank"], values["recall_at_1"], values["recall_at_3"]) == pytest.approx((1 / 3, 0, 1))
    assert torch.equal(given[-1], sources)
    sequences = llama.generate(ids, max_new_tokens=1, do_sample=False)
    arguments, known = (llama, sequences, ids.shape[1], method(llama, sequences, ids.shape[1])), {"sources": sources}
    for name, metric, chosen in (
        ("lds_source", linear_datamodelling_score, {"removal": "mask"}),
        ("lds_source_drop", linear_datamodelling_score, {"removal": "drop"}),
        ("top_3_drop", top_k_drop, {"k": 3}),
    ):
        expected = metric(*arguments, **known, **chosen, generator=SETTINGS.generator(0))
        assert values[name] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6), name


def test_all_of_a_target_is_measured_also_behind_an_end_of_sequence_token(llama, tokenizer, tmp_path):
    record = {"prompt": "the old king", "target": " came</s> home to the sea</s></s>"}
    seen = []

    def method(model, sequences, prompt_length, attention_mask=None):
        seen.append(get_method("saliency")(model, sequences, prompt_length, attention_mask))
        return seen[-1]

    before = llama.generation_config.eos_token_id
    llama.generation_config.eos_token_id = tokenizer.eos_token_id
    try:
        options = {"methods": {"mine": method}, "metrics": ["deletion"], "settings": SETTINGS}
        done = evaluate(llama, [record], tmp_path, tokenizer=tokenizer, **options)
    finally:
        llama.generation_config.eos_token_id = before
    assert done.errors == {}
    assert done.records[0]["continuation"] == record["target"]
    assert (seen[-1][0].amax(-1) > 0).all()
    sequences = torch.tensor([tokenizer(record["prompt"])["input_ids"] + tokenizer(record["target"])["input_ids"]])
    length = sequences.shape[1] - done.records[0]["num_tokens"]
    generator = SETTINGS.generator(0)
    expected = deletion(
        llama, sequences, length, seen[-1], num_portions=3, generator=generator
    )  # no token ends this model's text
    assert done.records[0]["values"]["deletion"]["mine"] == pytest.approx(expected.item(), rel=1e-5)


def test_agreement_is_measured_where_people_marked_something(evaluation):
    defined = evaluation.values("auc").isfinite()
    assert defined.tolist() == [[True, False, False, False]] * 3
    assert evaluation.values("deletion").isfinite().all()


def test_a_stopped_evaluation_goes_on_and_ends_as_an_undisturbed_one(evaluation, llama, tokenizer, tmp_path):
    calls = []

    def interrupted(model, sequences, prompt_length, attention_mask=None):
        calls.append(sequences)
        if len(calls) == 4:  # the first prompt counts twice: it warms up
            raise KeyboardInterrupt
        return get_method("saliency")(model, sequences, prompt_length, attention_mask)

    options = {"tokenizer": tokenizer, "settings": SETTINGS, "max_new_tokens": 2}
    methods = {name: get_method(name) for name in METHODS}
    with pytest.raises(KeyboardInterrupt):
        evaluate(llama, PROMPTS, tmp_path, methods={**methods, "saliency": interrupted}, **options)
    assert sorted(load_evaluation(tmp_path).records) == [0, 1]
    with (tmp_path / "records-00000.jsonl").open("a") as file:
        file.write('{"index": 2, "val')  # cut off in the middle of a line
    assert sorted(load_evaluation(tmp_path).records) == [0, 1]
    done = evaluate(llama, PROMPTS, tmp_path, methods=methods, **options)
    assert measured(done) == measured(evaluation)
    assert len((tmp_path / "records-00000.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metrics": ["auc"]}, "metrics"),
        ({"settings": Settings(seed=6)}, "settings.seed"),
        ({"max_new_tokens": 3}, "generate_kwargs.max_new_tokens"),
        ({"max_prompts": 2}, "num_prompts"),
        ({"methods": ["random"]}, "methods"),
    ],
)
def test_another_evaluation_in_the_same_folder_is_refused(llama, tokenizer, tmp_path, change, named):
    options = {"tokenizer": tokenizer, "methods": ["grad_ellm"], "metrics": ["deletion"], "max_new_tokens": 2}
    evaluate(llama, PROMPTS[:1], tmp_path, **options)
    before = (tmp_path / "records-00000.jsonl").read_bytes()
    with pytest.raises(InvalidInputError, match=f"another job.*\n(.*\n)*  {named}"):
        evaluate(llama, PROMPTS if "max_prompts" in change else PROMPTS[:1], tmp_path, **{**options, **change})
    assert (tmp_path / "records-00000.jsonl").read_bytes() == before


def test_a_folder_that_another_job_writes_to_is_refused(llama, tokenizer, tmp_path):
    with only_writer(tmp_path), pytest.raises(InvalidInputError, match="Another job is writing"):
        evaluate(llama, PROMPTS, tmp_path, tokenizer=tokenizer, methods=["random"], metrics=["deletion"])
    assert list(tmp_path.iterdir()) == []


def test_a_method_that_fails_is_recorded_and_the_others_go_on(llama, tokenizer, tmp_path):
    def failing(model, sequences, prompt_length, attention_mask=None):
        raise InvalidInputError("No scores today.")

    def infinite(model, sequences, prompt_length, attention_mask=None):
        return torch.full((1, sequences.shape[1] - prompt_length, sequences.shape[1]), torch.inf)

    methods = {"failing": failing, "infinite": infinite, "random": get_method("random")}
    done = evaluate(llama, PROMPTS[:2], tmp_path, tokenizer=tokenizer, methods=methods, metrics=["deletion", "soft_ns"])
    assert done.method_errors("failing") == ["InvalidInputError: No scores today."] * 2
    assert "not all finite" in done.method_errors("infinite")[0]
    assert done.values("deletion").isfinite().tolist() == [[False] * 2, [False] * 2, [True] * 2]
    summary = summarise(done)
    assert summary.reference is None
    assert {row.method for row in summary.rows} == {"random"}


def test_a_prompt_that_fails_is_recorded_and_the_others_go_on(llama, tokenizer, tmp_path):
    prompts = [
        {"prompt": ""},
        {"prompt": "by the sea", "rationale": [[3, 30]]},
        {"prompt": "by the sea", "target": ""},
        {"prompt": "by the sea"},
    ]
    done = evaluate(llama, prompts, tmp_path, tokenizer=tokenizer, methods=["random"], metrics=["deletion"])
    assert sorted(done.errors) == [0, 1, 2]
    assert "prompt is empty" in done.errors[0]
    assert "does not lie in its text of 10 characters" in done.errors[1]
    assert "`target` must be a text" in done.errors[2]
    assert len(done.done()) == 1


def test_a_rationale_marks_the_last_message_of_a_chat_even_where_the_template_strips_it(llama, tokenizer):
    messages = [{"role": "user", "content": "the sea"}, {"role": "user", "content": "  by the sea "}]
    text = read_text(GradELLM(llama, tokenizer), Prompt(messages, None, {"rationale": [[9, 12]]}), False, {"max_new_tokens": 1})
    assert text.rationale is not None
    pieces = [tokenizer.decode(i) for i in text.sequences[0, : text.prompt_length]]
    marked = "".join(piece if is_marked else "_" * len(piece) for piece, is_marked in zip(pieces, text.rationale.tolist()))
    assert marked.strip("_").strip() == "sea"
    assert "".join(pieces)[: len(marked.rstrip("_"))].endswith("by the sea")


def test_a_rationale_of_a_message_in_parts_is_refused(llama, tokenizer):
    messages = [{"role": "user", "content": [{"type": "text", "text": "by the sea"}]}]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'][0]['text'] }}"
    prompt = Prompt(messages, None, {"rationale": [[0, 2]]})
    with pytest.raises(InvalidInputError, match="in parts"):
        read_text(GradELLM(llama, tokenizer), prompt, False, {"max_new_tokens": 1})


def test_special_tokens_are_left_alone_unless_asked_for(llama, tokenizer):
    prompt = Prompt(f"{tokenizer.eos_token}by the sea")
    explainer = GradELLM(llama, tokenizer)
    text = read_text(explainer, prompt, False, {"max_new_tokens": 1})
    assert text.fixed.tolist() == [True] + [False] * (text.prompt_length - 1)
    assert not read_text(explainer, prompt, True, {"max_new_tokens": 1}).fixed.any()


def test_each_prompt_has_random_scores_of_its_own_and_the_same_in_each_run(llama, tokenizer, tmp_path):
    seen = []

    def drawing(model, sequences, prompt_length, attention_mask=None, *, generator=None):
        seen.append(get_method("random")(model, sequences, prompt_length, generator=generator))
        return seen[-1]

    for run in range(2):
        options = {"tokenizer": tokenizer, "methods": {"drawing": drawing}, "metrics": ["deletion"]}
        evaluate(llama, ["by the sea", "by the sea"], tmp_path / str(run), **options)
    _, first, second, _, again, _ = seen  # the first of each run warms up
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_only_the_records_that_were_asked_for_are_evaluated(llama, tokenizer, tmp_path):
    options = {"tokenizer": tokenizer, "methods": ["random"], "metrics": ["deletion"]}
    done = evaluate(llama, PROMPTS, tmp_path / "a", where={"task": "second"}, **options)
    assert [record["id"] for record in done.records.values()] == ["b", "d"]
    done = evaluate(llama, PROMPTS, tmp_path / "b", where={"task": "second"}, max_prompts=1, **options)
    assert [record["id"] for record in done.records.values()] == ["b"]
    with pytest.raises(InvalidInputError, match="No record has"):
        evaluate(llama, PROMPTS, tmp_path / "c", where={"task": "third"}, **options)
    with pytest.raises(InvalidInputError, match="`methods` must be different names"):
        evaluate(llama, PROMPTS, tmp_path / "c", **{**options, "methods": ["astrology"]})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "word"}, "`level` must be 'step' or"),
        ({"calibration": "log"}, "`calibration` must be 'scale' or"),
        ({"num_samples": 0}, "`num_samples` must be an int of at least 1, got 0"),
        ({"batch_size": None}, "`batch_size` must be an int of at least 1, got None"),
        ({"num_portions": 2.5}, "`num_portions` must be None .* or an int of at least 1, got 2.5"),
        ({"pis": ()}, "`pis` must be shares between 0 and 1, at least one"),
        ({"pis": (0.5, 0.2)}, "`pis` must be ascending shares"),
        ({"pis": (0.5, 1.2)}, "`pis` must be shares between 0 and 1, got 1.2"),
        ({"seed": "a"}, "`seed` must be an int"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        Settings(**options)


def test_a_summary_has_means_intervals_and_differences_of_each_task_and_of_all(evaluation):
    summary = summarise(evaluation)
    assert summary.tasks == ("first", "second", "all")
    for task, rows in (("first", [0, 2]), ("all", [0, 1, 2, 3])):
        areas = normalised_area(evaluation.values("pi_soft_ns")[:, rows], SETTINGS.pis)
        expected = bootstrap(areas)
        for m, method in enumerate(METHODS):
            row = summary.row(task, method, "pi_soft_ns")
            assert row.num_prompts == len(rows)
            assert (row.value.mean, row.value.low, row.value.high) == pytest.approx([x[m].item() for x in expected])
            curve = evaluation.values("pi_soft_ns")[m, rows].mean(0)
            assert [point.mean for point in row.curve] == pytest.approx(curve.tolist())
            if method == "grad_ellm":
                assert row.difference is None
            else:
                difference = bootstrap(areas[m] - areas[0])
                expected_difference = [x.item() for x in difference]
                assert (row.difference.mean, row.difference.low, row.difference.high) == pytest.approx(expected_difference)
    many = summarise(evaluation, comparisons=4).row("all", "saliency", "deletion")
    values = evaluation.values("deletion")
    corrected = bootstrap(values[1] - values[0], confidence=1 - 0.05 / 4, num_resamples=40_000)
    assert (many.difference.low, many.difference.high) == pytest.approx([x.item() for x in corrected[1:]])
    assert many.value == summary.row("all", "saliency", "deletion").value
    with pytest.raises(InvalidInputError, match="`comparisons` must be an int of at least 1"):
        summarise(evaluation, comparisons=0)
    assert summary.row("second", "grad_ellm", "auc") is None
    json.dumps(summary.to_dict(), allow_nan=False)


def test_a_method_is_marked_where_it_differs_from_the_reference_by_more_than_the_interval(llama, tokenizer, tmp_path):
    words = ["one", "day", "to", "find", "what", "his", "people", "had", "lost", "in"]
    texts = [f"the old king of a small land by the sea {word}" for word in words]
    oracle = get_method("leave_one_out")

    def reverse(*arguments):
        return -oracle(*arguments)

    methods = {"oracle": oracle, "reverse": reverse, "twin": oracle}
    done = evaluate(llama, texts, tmp_path, tokenizer=tokenizer, methods=methods, metrics=["rank_correlation", "deletion"])
    summary = summarise(done, reference="oracle")
    marks = {m: summary.row("", m, "rank_correlation").against_reference for m in methods}
    assert marks == {"oracle": 0, "reverse": -1, "twin": 0}
    assert summary.row("", "oracle", "rank_correlation").value.mean == pytest.approx(1)
    backwards = summarise(done, reference="reverse")
    assert backwards.row("", "oracle", "rank_correlation").against_reference == 1
    few = evaluate(llama, texts[:9], tmp_path / "few", tokenizer=tokenizer, methods=methods, metrics=["rank_correlation"])
    assert summarise(few, reference="oracle").row("", "reverse", "rank_correlation").against_reference == 0
    table = summary.to_markdown("").splitlines()
    assert table[0].startswith("| method | s / token | x generate | rank_correlation \u2191 | deletion \u2193 |")
    assert "**1.000** ± 0.000 |" in table[2]
    assert " - |" in table[3]


def test_both_correlations_with_leaving_one_out_are_measured_at_once(llama, tokenizer, tmp_path, monkeypatch):
    calls, leave_one_out = [], agreement.leave_one_out
    monkeypatch.setattr(agreement, "leave_one_out", lambda text: calls.append(1) or leave_one_out(text))
    metrics = ["rank_correlation", "auc", "pearson_correlation"]
    options = {"tokenizer": tokenizer, "methods": ["attention_mean", "saliency"], "metrics": metrics}
    done = evaluate(llama, PROMPTS[:2], tmp_path, **options)
    assert len(calls) == 2  # once a prompt
    monkeypatch.undo()
    for index, prompt in enumerate(PROMPTS[:2]):
        text = read_text(GradELLM(llama, tokenizer), Prompt(prompt["prompt"]), False, {"max_new_tokens": 1, "do_sample": False})
        for number, method in enumerate(options["methods"]):
            heatmap = get_method(method)(llama, text.sequences, text.prompt_length)
            for metric, function in (("rank_correlation", rank_correlation), ("pearson_correlation", pearson_correlation)):
                expected = function(llama, text.sequences, text.prompt_length, heatmap, fixed=text.fixed)
                torch.testing.assert_close(done.values(metric)[number, index], expected[0], check_dtype=False)


def test_merged_evaluations_have_a_task_each_and_all_prompts_in_all(evaluation, llama, tokenizer, tmp_path):
    options = {"tokenizer": tokenizer, "methods": METHODS, "settings": SETTINGS}
    other = evaluate(llama, ["by the sea"], tmp_path / "a", **options)
    both = merge({"one": evaluation, "two": other})
    assert (len(both), both.num_prompts, both.tasks) == (5, 5, ["one", "two"])
    torch.testing.assert_close(both.values("deletion", "one"), evaluation.values("deletion"))
    assert summarise(both).row("all", "random", "deletion").num_prompts == 5
    assert evaluation.tasks == ["first", "second"]
    different = evaluate(llama, ["by the sea"], tmp_path / "b", **{**options, "methods": ["random"]})
    with pytest.raises(InvalidInputError, match="the same methods"):
        merge({"one": evaluation, "two": different})


def test_pictures_show_every_method_by_its_name(evaluation, tmp_path):
    summary = summarise(evaluation)
    figure = plot_curves(summary, "all")
    figure.savefig(tmp_path / "curves.png")
    for axis, metric in zip(figure.axes, ("pi_soft_ns", "pi_soft_nc")):
        lines = {line.get_label(): line for line in axis.get_lines()}
        assert list(lines) == METHODS
        for method, line in lines.items():
            row = summary.row("all", method, metric)
            assert line.get_ydata().tolist() == [point.mean for point in row.curve]
        assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == 3
    figure = plot_costs(summary, "second", ["deletion", "auc"])
    figure.savefig(tmp_path / "costs.png")
    assert len(figure.axes) == 1  # no rationale in this task
    with pytest.raises(InvalidInputError, match="none of \\['auc'\\] was measured"):
        plot_costs(summary, "second", ["auc"])
