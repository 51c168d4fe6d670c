"""Many prompts: what goes in, what comes out, what is refused, and what happens to prompts that fail."""

import copy
import dataclasses
import functools
import io
import json
import shutil
import sys
from pathlib import Path

import accelerate
import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LogitsProcessor

from gradellm_hf import GradELLMConfig, InvalidInputError, explain_generate
from gradellm_hf.cli import main
from gradellm_hf.dataset import explain_dataset, load_dataset_explanations
from gradellm_hf.dataset.shards import NewShard, Result, Shard
from gradellm_hf.jobs.manifest import described, fingerprint, tokenizer_fingerprint, weights_fingerprint
from gradellm_hf.jobs.processes import only_writer
from gradellm_hf.model import GradELLM
from gradellm_hf.results.explanation import Explanation
from gradellm_hf.text.rest import Rest
from tests.support.dataset_job import VOCABULARY, contents, texts, tiny_llama, write_job
from tests.support.tiny_tokenizers import byte_level_bpe

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_bpe()


@pytest.fixture
def chatting(tokenizer):
    tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


def assert_same_explanation(actual: Explanation, expected: Explanation, tolerance: float = 0) -> None:
    for field in dataclasses.fields(Explanation):
        found, wanted = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(wanted, Rest):
            found, wanted = found.sums, wanted.sums
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())
        else:
            assert found == wanted, field.name


def test_explanations_are_those_of_each_prompt_alone_in_the_order_of_the_input(llama, tokenizer, tmp_path):
    config = GradELLMConfig(layers=[1, -1], output_layer_attributions=True)
    prompts = [*texts(6), "café 😀 naïve"]
    found = explain_dataset(
        llama, prompts, tmp_path / "out", tokenizer=tokenizer, explain_config=config, batch_size=3, max_new_tokens=4
    )
    assert len(found) == 7
    assert found.errors == {}
    for prompt, explanation in zip(prompts, found, strict=True):
        alone = GradELLM(llama, tokenizer, config).explain(prompt, max_new_tokens=4)
        assert explanation.text.startswith(prompt)
        assert_same_explanation(explanation, alone, 1e-4)


def test_what_is_stored_is_what_was_explained_bit_by_bit(llama, tokenizer, tmp_path):
    prompt, config = "Rome is the capital", GradELLMConfig(output_layer_attributions=True)
    found = explain_dataset(llama, [prompt], tmp_path / "out", tokenizer=tokenizer, explain_config=config, max_new_tokens=5)
    assert_same_explanation(found[0], GradELLM(llama, tokenizer, config).explain(prompt, max_new_tokens=5))
    options = {"max_new_tokens": 5, "steps": slice(-2, None)}
    found = explain_dataset(llama, [prompt], tmp_path / "some", tokenizer=tokenizer, explain_config=config, **options)
    assert found[0].explained == [False, False, False, True, True]
    assert_same_explanation(found[0], GradELLM(llama, tokenizer, config).explain(prompt, **options))


def test_text_that_is_no_unicode_is_stored_as_it_is(llama, tokenizer, tmp_path):
    explanation = GradELLM(llama, tokenizer).explain("Rome", max_new_tokens=2)
    first, *others = explanation.tokens
    half = dataclasses.replace(explanation, tokens=["\ud83d" + first, *others], text="\ud83d" + explanation.text)
    new = NewShard(torch.float32)
    new.add(Result(0, None, [half]))
    new.write(tmp_path / "shard")
    (found,) = Shard(tmp_path / "shard").explanations(0, explain_config=explanation.explain_config)
    assert_same_explanation(found, half)


def test_explanations_are_read_by_position_and_slice_without_the_model(llama, tokenizer, tmp_path):
    explain_dataset(llama, texts(7), tmp_path / "out", tokenizer=tokenizer, batch_size=2, max_new_tokens=2)
    found = load_dataset_explanations(tmp_path / "out")
    all_texts = [explanation.text for explanation in found]
    assert found[-1].text == found[6].text == all_texts[6]
    assert [explanation.text for explanation in found[1:6:2]] == all_texts[1:6:2]
    with pytest.raises(IndexError):
        found[7]


def test_float16_takes_half_the_space_and_keeps_three_digits(llama, tokenizer, tmp_path):
    exact, rounded = (
        explain_dataset(llama, texts(3), tmp_path / dtype, tokenizer=tokenizer, score_dtype=dtype, max_new_tokens=4)
        for dtype in ("float32", "float16")
    )
    for left, right in zip(rounded, exact, strict=True):
        assert_same_explanation(left, right, 1e-3)
        assert not torch.equal(left.attributions, right.attributions)


def test_the_strongest_scores_are_stored_with_the_sums_of_the_others_and_the_job_goes_on_with_them(llama, tokenizer, tmp_path):
    config = GradELLMConfig(output_layer_attributions=True)
    options = {"tokenizer": tokenizer, "explain_config": config, "batch_size": 2, "max_new_tokens": 6, "keep": 2}
    found = explain_dataset(llama, ["Rome is old", "", "The capital of Italy"], tmp_path / "out", **options)
    assert list(found.errors) == [1]
    for prompt, explanation in zip(("Rome is old", "The capital of Italy"), (found[0], found[2]), strict=True):
        expected = GradELLM(llama, tokenizer, config).explain(prompt, max_new_tokens=6).compact(2)
        assert_same_explanation(explanation, expected, 1e-4)
    before = contents(tmp_path / "out")
    explain_dataset(llama, ["Rome is old", "", "The capital of Italy"], tmp_path / "out", **options)
    assert contents(tmp_path / "out") == before
    with pytest.raises(InvalidInputError, match="keep: there 2, here 3"):
        explain_dataset(llama, ["Rome is old", "", "The capital of Italy"], tmp_path / "out", **{**options, "keep": 3})


def test_what_was_reduced_stays_as_it_is_when_a_shard_is_written_again(llama, tokenizer, tmp_path):
    explanation = GradELLM(llama, tokenizer).explain("The capital of Italy is", max_new_tokens=6)
    for dtype in (torch.float32, torch.float16):
        for name, result in (("a", lambda: Result(0, None, [explanation])), ("b", lambda: Shard(tmp_path / "a").result(0))):
            shard = NewShard(dtype, "top")
            shard.add(result())
            shard.write(tmp_path / name)
        (first,), (again,) = (Shard(tmp_path / name).explanations(0) for name in "ab")
        assert_same_explanation(again, first)


def test_several_sequences_a_prompt_come_as_a_list(llama, tokenizer, tmp_path):
    options = {"num_return_sequences": 2, "do_sample": True, "max_new_tokens": 6}
    found = explain_dataset(llama, texts(3), tmp_path / "out", tokenizer=tokenizer, batch_size=2, **options)
    for text, several in zip(texts(3), found, strict=True):
        assert len(several) == 2
        assert all(explanation.text.startswith(text) for explanation in several)
        assert several[0].text != several[1].text


def test_sampling_follows_from_the_seed_and_leaves_the_random_state_alone(llama, tokenizer, tmp_path):
    def sampled(name: str, seed: int) -> list[str]:
        options = {"do_sample": True, "max_new_tokens": 6, "seed": seed, "batch_size": 2}
        return [e.text for e in explain_dataset(llama, texts(4), tmp_path / name, tokenizer=tokenizer, **options)]

    state = torch.get_rng_state()
    first = sampled("first", 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert sampled("again", 1) == first
    assert sampled("other", 2) != first


@pytest.mark.parametrize("kind", ["list", "generator", "jsonl", "parquet", "dataset", "saved dataset"])
def test_the_same_prompts_give_the_same_job_wherever_they_come_from(llama, tokenizer, tmp_path, kind):
    records = [{"id": f"no. {i}", "prompt": text} for i, text in enumerate(texts(3))]
    if kind in ("parquet", "dataset", "saved dataset"):
        dataset = pytest.importorskip("datasets").Dataset.from_list(records)
    source = {"list": records, "generator": (record for record in records)}.get(kind)
    if kind == "jsonl":
        source = tmp_path / "prompts.jsonl"
        source.write_text("\n\n".join(map(json.dumps, records)), encoding="utf-8")
    elif kind == "parquet":
        source = tmp_path / "prompts.parquet"
        dataset.to_parquet(source)
    elif kind == "dataset":
        source = dataset
    elif kind == "saved dataset":
        source = tmp_path / "folder"
        dataset.save_to_disk(source)
    expected = explain_dataset(llama, records, tmp_path / "expected", tokenizer=tokenizer, max_new_tokens=2)
    found = explain_dataset(llama, source, tmp_path / "found", tokenizer=tokenizer, max_new_tokens=2)
    assert found.ids == ["no. 0", "no. 1", "no. 2"]
    assert found.manifest == expected.manifest
    assert contents(tmp_path / "found") == contents(tmp_path / "expected")


def test_chats_go_through_the_template_and_columns_have_names(llama, chatting, tmp_path):
    chat = [{"role": "user", "content": "Rome"}]
    found = explain_dataset(llama, [chat, {"messages": chat}], tmp_path / "chats", tokenizer=chatting, max_new_tokens=1)
    assert [explanation.text.startswith("user: Rome\n") for explanation in found] == [True, True]
    rows = [{"question": "Paris", "prompt": "not this"}]
    found = explain_dataset(llama, rows, tmp_path / "column", tokenizer=chatting, column="question", max_new_tokens=1)
    assert found[0].text.startswith("Paris")


def test_prompts_that_fail_are_recorded_and_the_others_explained(tokenizer, tmp_path):
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=None, pad_token_id=0
    )
    model, good = GPT2LMHeadModel(config).eval(), texts(3)
    chat = [{"role": "user", "content": "no template"}]
    prompts = [good[0], "", "Rome " * 200, good[1], chat, {"id": "odd", "text": "no such field"}, good[2], 7]
    found = explain_dataset(model, prompts, tmp_path / "out", tokenizer=tokenizer, batch_size=8, max_new_tokens=3)
    assert list(found.errors) == [1, 2, 4, 5, 7]
    reasons = ("empty", "128 positions", "no chat template", "no prompt in 'prompt' or 'messages' or 'chat'", "Give a text")
    for error, reason in zip(found.errors.values(), reasons, strict=True):
        assert error.startswith("InvalidInputError: ")
        assert reason in error
    assert [found[i].text.startswith(text) for i, text in zip((0, 3, 6), good, strict=True)] == [True] * 3
    for i, error in found.errors.items():
        assert not found[i]
        assert (found[i].index, found[i].id, found[i].error) == (i, "odd" if i == 5 else None, error)
    assert load_dataset_explanations(tmp_path / "out").errors == found.errors


@pytest.mark.parametrize(
    "prompts",
    [["Rome", "RomeZ", "Italy"], ["Water boils at", "RomeZ", "Z"], ["Z"]],
    ids=["one of three", "the shortest two", "the only one"],
)
def test_a_prompt_that_produces_nan_takes_no_other_down(tokenizer, tmp_path, prompts):
    model = tiny_llama()
    (poison,) = tokenizer("Z", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = torch.nan
    found = explain_dataset(model, prompts, tmp_path / "out", tokenizer=tokenizer, max_new_tokens=2)
    assert list(found.errors) == [i for i, prompt in enumerate(prompts) if not prompt or "Z" in prompt]
    for explanation, prompt in zip(found, prompts, strict=True):
        assert not explanation or explanation.text.startswith(prompt)


class OutOfMemory(torch.nn.Module):
    """A layer that runs out of memory with more than so many rows."""

    def __init__(self, layer: torch.nn.Module, most: int):
        super().__init__()
        self.layer, self.most, self.rows = layer, most, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > self.most:
            self.rows.append(x.shape[0])
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.layer(x)


def test_a_batch_that_does_not_fit_in_memory_is_halved(tokenizer, tmp_path):
    model = tiny_llama()
    expected = explain_dataset(model, texts(8), tmp_path / "expected", tokenizer=tokenizer, batch_size=2, max_new_tokens=2)
    model.lm_head = OutOfMemory(model.lm_head, 2)
    job = {"tokenizer": tokenizer, "batch_size": 8, "max_new_tokens": 2}
    found = explain_dataset(model, texts(8), tmp_path / "found", **job)
    assert model.lm_head.rows == [8, 4, 4]
    assert found.errors == {}
    for left, right in zip(found, expected, strict=True):
        assert_same_explanation(left, right, 1e-4)


def test_arguments_with_which_nothing_works_are_an_error_of_the_job(llama, tokenizer, tmp_path):
    with pytest.raises(InvalidInputError, match=r"No prompt can be explained with these arguments.*max_new_token"):
        explain_dataset(llama, texts(3), tmp_path / "out", tokenizer=tokenizer, max_new_token=3)
    assert not list((tmp_path / "out").glob("shard-*"))
    explained = explain_dataset(llama, texts(3), tmp_path / "out", tokenizer=tokenizer, max_new_tokens=3)
    assert not explained.errors  # nothing of that job stands in the way of the right one
    assert explained.manifest["generate_kwargs"] == {"max_new_tokens": 3}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer": None}, "no tokenizer"),
        ({"prompts": []}, "empty"),
        ({"prompts": ["", "", 7]}, "No prompt can be read; what is wrong with the first one: The prompt .*empty"),
        ({"prompts": {"train": ["a"]}}, "mapping"),
        ({"prompts": 3}, "iterable"),
        ({"batch_size": 0}, "batch_size"),
        ({"shard_size": 0}, "shard_size"),
        ({"seed": "x"}, "seed"),
        ({"keep": 0}, '`keep` must be "top"'),
        ({"score_dtype": "int8"}, "`score_dtype` must be 'float32' or 'float16', got 'int8'"),
        ({"explain_config": GradELLMConfig(layers=9)}, "5 attention layers"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_unusable_arguments_are_refused_before_anything_is_written(llama, tokenizer, tmp_path, change, reason):
    arguments = {"prompts": ["Rome"], "tokenizer": tokenizer, "output_dir": tmp_path / "out", **change}
    with pytest.raises(InvalidInputError, match=reason):
        explain_dataset(llama, **arguments)
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read_are_refused(llama, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="prompts"):
        explain_dataset(llama, tmp_path / "missing.jsonl", tmp_path / "out", tokenizer=tokenizer)
    (tmp_path / "prompts.csv").write_text("prompt\nRome\n")
    with pytest.raises(InvalidInputError, match=r"\.jsonl and \.parquet"):
        explain_dataset(llama, tmp_path / "prompts.csv", tmp_path / "out", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def finished(llama, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "out"
    explain_dataset(llama, texts(6), folder, tokenizer=tokenizer, batch_size=2, max_new_tokens=2)
    return folder


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"prompts": [*texts(5), "Rome"]}, "input"),
        ({"prompts": texts(6)[::-1]}, "input"),
        ({"explain_config": GradELLMConfig(layers=1)}, "explain_config.layers"),
        ({"max_new_tokens": 3}, "generate_kwargs.max_new_tokens: there 2, here 3"),
        ({"do_sample": True}, "generate_kwargs.do_sample"),
        ({"batch_size": 3}, "batch_size"),
        ({"seed": 1}, "seed"),
        ({"score_dtype": "float16"}, "dtype: there 'float32', here 'float16'"),
        ({"keep": "top"}, "keep: there None, here 'top'"),
        ({"steps": slice(-1, None)}, "generate_kwargs.steps"),
        ({"model": {"seed": 1}}, "model.weights"),
        ({"model": {"rms_norm_eps": 1e-3}}, "model.config"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_another_job_is_refused_and_changes_nothing(llama, tokenizer, finished, change, name):
    before = contents(finished)
    model = tiny_llama(**change["model"]) if "model" in change else llama
    arguments = {"prompts": texts(6), "tokenizer": tokenizer, "batch_size": 2, "max_new_tokens": 2, **change}
    with pytest.raises(InvalidInputError, match="another job") as error:
        explain_dataset(**{**arguments, "model": model}, output_dir=finished)
    assert f"\n  {name}" in str(error.value)
    assert contents(finished) == before


class Banned(LogitsProcessor):
    """A logits processor with a setting and, as some have, a reference to itself."""

    def __init__(self, token: int):
        self.token, self.me = token, self

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor([self.token]), -torch.inf)


def test_arguments_that_are_objects_count_by_their_settings(llama, tokenizer, tmp_path):
    job = {"tokenizer": tokenizer, "max_new_tokens": 2, "prompts": ["Rome"], "output_dir": tmp_path / "out"}
    explain_dataset(llama, logits_processor=[Banned(3)], **job)
    explain_dataset(llama, logits_processor=[Banned(3)], **job)
    with pytest.raises(InvalidInputError, match=r"generate_kwargs\.logits_processor"):
        explain_dataset(llama, logits_processor=[Banned(4)], **job)


@pytest.mark.parametrize(
    ("value", "same", "another"),
    [
        ({"b", "a", 1}, {1, "a", "b"}, {1, "a", "c"}),
        (torch.tensor([1, 2]), [1, 2], torch.tensor([1, 3])),
        (slice(-2, None), slice(-2, None, None), slice(-1, None)),
        (
            GenerationConfig(eos_token_id=[1, 2], transformers_version="5.0"),
            GenerationConfig(eos_token_id=[1, 2], transformers_version="5.1"),
            GenerationConfig(eos_token_id=[1, 3], transformers_version="5.0"),
        ),
    ],
    ids=["set", "tensor", "slice", "generation config"],
)
def test_arguments_that_json_does_not_know_count_by_what_they_hold(value, same, another):
    for wrap in (lambda x: x, lambda x: {"a": [x], 1: x}):
        assert fingerprint(described(wrap(value))) == fingerprint(described(wrap(same)))
        assert fingerprint(described(wrap(value))) != fingerprint(described(wrap(another)))


def test_how_a_tokenizer_was_last_used_does_not_count_and_what_it_knows_does():
    tokenizer = copy.deepcopy(byte_level_bpe())
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["Rome", "The capital of Italy"], padding=True, truncation=True, max_length=3)
    assert json.loads(tokenizer.backend_tokenizer.to_str())["truncation"] is not None
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.add_tokens(["Rome"])
    assert tokenizer_fingerprint(tokenizer) != before


def test_weights_count_wherever_accelerate_keeps_them(llama):
    offloaded = accelerate.cpu_offload(tiny_llama(), torch.device("cpu"))
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    assert weights_fingerprint(offloaded) == weights_fingerprint(llama)
    assert weights_fingerprint(accelerate.cpu_offload(tiny_llama(seed=1), torch.device("cpu"))) != weights_fingerprint(llama)


def test_another_tokenizer_is_refused(llama, chatting, finished):
    with pytest.raises(InvalidInputError, match="\n  tokenizer: there"):
        explain_dataset(llama, texts(6), finished, tokenizer=chatting, batch_size=2, max_new_tokens=2)


def test_a_finished_job_is_not_done_again(llama, tokenizer, finished, monkeypatch):
    monkeypatch.setattr(GradELLM, "explain", None)  # to explain anything would fail
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    found = explain_dataset(llama, texts(6), finished, tokenizer=tokenizer, batch_size=2, max_new_tokens=2)
    assert len(found) == 6
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_only_what_is_missing_is_done_and_rubbish_is_cleaned_up(llama, tokenizer, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "out")
    (folder / "shard-000001.safetensors").rename(folder / ".shard-000001.safetensors.77.partial")
    with pytest.raises(InvalidInputError, match="not finished: 4 of 6"):
        load_dataset_explanations(folder)
    kept = (folder / "shard-000002.safetensors").stat().st_mtime_ns
    explain_dataset(llama, texts(6), folder, tokenizer=tokenizer, batch_size=2, max_new_tokens=2)
    assert contents(folder) == contents(finished)
    assert (folder / "shard-000002.safetensors").stat().st_mtime_ns == kept


def test_ctrl_c_leaves_whole_shards_only(llama, tokenizer, finished, tmp_path, monkeypatch):
    calls, forward = [], type(llama).forward

    @functools.wraps(llama.forward)  # `generate` looks at the arguments that it takes
    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) > 7:  # three per batch
            raise KeyboardInterrupt
        return forward(llama, *args, **kwargs)

    monkeypatch.setattr(llama, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explain_dataset(llama, texts(6), tmp_path / "out", tokenizer=tokenizer, batch_size=2, max_new_tokens=2)
    left, whole = contents(tmp_path / "out"), contents(finished)
    assert 1 < len(left) < len(whole)
    assert left == {name: whole[name] for name in left}


def test_folders_of_others_are_refused(llama, tokenizer, finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest"):
        load_dataset_explanations(tmp_path)
    shutil.copy(finished / "shard-000000.safetensors", tmp_path)
    with pytest.raises(InvalidInputError, match="without a manifest"):
        explain_dataset(llama, texts(6), tmp_path, tokenizer=tokenizer)
    (tmp_path / "manifest.json").write_text('{"short_name": "a web page"}')
    with pytest.raises(InvalidInputError, match="not the manifest"):
        explain_dataset(llama, texts(6), tmp_path, tokenizer=tokenizer)


def test_a_folder_that_another_job_writes_to_is_refused(llama, tokenizer, tmp_path):
    with only_writer(tmp_path), pytest.raises(InvalidInputError, match="Another job is writing"):
        explain_dataset(llama, texts(2), tmp_path, tokenizer=tokenizer, max_new_tokens=1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_explains_a_file_and_says_so(tmp_path, capsys):
    arguments = [*write_job(tmp_path, 3), "--output", str(tmp_path / "out")]
    assert main(["dataset", *arguments]) == 0
    assert "3 of 3 prompts explained" in capsys.readouterr().err
    found = load_dataset_explanations(tmp_path / "out")
    assert found.ids == ["text 0", "text 1", "text 2"]
    assert main(["dataset", *arguments, "--seed", "5"]) == 2
    assert "seed: there 0, here 5" in capsys.readouterr().err


def test_the_command_explains_some_steps_and_stores_the_strongest_scores(tmp_path, capsys):
    arguments = [*write_job(tmp_path, 2), "--output", str(tmp_path / "out"), "--keep", "top", "--scores", "float16"]
    assert main(["dataset", *arguments, "--steps=-3:"]) == 0
    for explanation in load_dataset_explanations(tmp_path / "out"):
        assert explanation.explained == [False] * 5 + [True] * 3
        assert (explanation.rest.total[:5] == 0).all()
        assert (explanation.rest.total[5:] > 0).all()
    assert main(["dataset", *arguments, "--steps=-2:"]) == 2
    assert "generate_kwargs.steps: there 'slice(-3, None, None)', here 'slice(-2, None, None)'" in capsys.readouterr().err


def test_progress_is_shown_in_a_terminal_only(llama, tokenizer, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = []
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        explain_dataset(llama, texts(2), tmp_path / str(len(shown)), tokenizer=tokenizer, max_new_tokens=1)
        shown.append(stream.getvalue())
    assert shown[0] == ""
    assert "2/2" in shown[1]


def test_a_real_model_explains_texts_and_chats_in_batches(smollm2, tmp_path):
    model, tokenizer = smollm2
    chat = [{"role": "user", "content": "What is the capital of Italy? Answer with one word."}]
    prompts = ["The capital of France is", chat, "Once upon a time, in a village by the sea, there lived"]
    found = explain_dataset(model, prompts, tmp_path / "out", tokenizer=tokenizer, batch_size=2, max_new_tokens=6)
    assert found.errors == {}
    assert "Paris" in "".join(found[0].tokens[found[0].prompt_length :])
    assert "Rome" in "".join(found[1].tokens[found[1].prompt_length :])
    encoded = tokenizer(prompts[0], return_tensors="pt")
    (alone,) = explain_generate(model, **encoded, max_new_tokens=6).explanations(tokenizer)
    assert_same_explanation(found[0], alone, 1e-3)
