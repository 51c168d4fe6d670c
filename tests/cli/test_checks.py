"""The command line: what can be known is checked before a model is loaded, and nothing that was computed is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradellm_hf.cli import main
from gradellm_hf.cli.result_options import print_errors
from gradellm_hf.results.explanation import Explanation
from tests.support.evaluated import model_and_tokenizer
from tests.support.explained import explanation_of

pytestmark = pytest.mark.slow

WORK = "the folder of the test"  # in the arguments below
MODEL = f"{WORK}/model"
EXPLAIN = ["explain", MODEL, "--prompt", "Rome is"]
DATASET = ["dataset", MODEL, "--prompts", f"{WORK}/prompts.jsonl", "--output", f"{WORK}/job"]
EVALUATE = ["evaluate", MODEL, "--prompts", f"{WORK}/prompts.jsonl", "--output", f"{WORK}/job"]
SHOW = ["show", f"{WORK}/e.safetensors"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, prompts, a saved explanation, and files that are not what is asked for."""
    folder = tmp_path_factory.mktemp("work")
    model, tokenizer = model_and_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text('{"prompt": "Rome is", "split": "a"}\n{"prompt": ""}\n')
    (folder / "empty.jsonl").write_text("\n")
    (folder / "all-empty.jsonl").write_text('{"prompt": ""}\n')
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "chat.json").write_text('{"role": "user", "content": "a"}')
    (folder / "mixed.json").write_text('[{"role": "user", "content": "a"}, "b"]')
    (folder / "no-role.json").write_text('[{"content": "a"}]')
    (folder / "question.txt").write_text("Rome is")
    (folder / "a folder").mkdir()
    (folder / "other job").mkdir()
    (folder / "other job" / "manifest.json").write_text('{"format": "something else"}')
    (folder / "link.html").symlink_to(folder / "page.html")
    (folder / "dangling.html").symlink_to(folder / "nowhere" / "page.html")
    explanation_of(["Rome", " is", " old"], 2).save(folder / "e.safetensors")
    os.link(folder / "e.safetensors", folder / "hard-link.safetensors")
    return folder


USAGE = {
    "sampling that is no number": ([*EXPLAIN, "--do-sample", "--temperature", "hot"], "'hot' is not a number above 0"),
    "temperature of 0": ([*EXPLAIN, "--do-sample", "--temperature", "0"], "'0' is not a number above 0"),
    "temperature nan": ([*EXPLAIN, "--do-sample", "--temperature", "nan"], "'nan' is not a number above 0"),
    "top-p of 2": ([*EXPLAIN, "--do-sample", "--top-p", "2"], "'2' is not a number from 0 to 1"),
    "top-k of 0": ([*EXPLAIN, "--do-sample", "--top-k", "0"], "not a number of at least 1"),
    "no tokens": ([*EXPLAIN, "--max-new-tokens", "0"], "'0' is not a number of at least 1"),
    "no beams": ([*EXPLAIN, "--num-beams", "-1"], "not a number of at least 1"),
    "negative seed": ([*EXPLAIN, "--do-sample", "--seed", "-1"], "not a number from 0 to 2^32 - 1"),
    "large seed": (["verify", MODEL, "--seed", str(2**70)], "not a number from 0 to 2^32 - 1"),
    "tolerance nan": (["verify", MODEL, "--tolerance", "nan"], "'nan' is not a number from 0"),
    "row -1": ([*SHOW, "--row", "-1"], "not a number of at least 0"),
    "device map of lists": ([*EXPLAIN, "--device-map", '{"": [0]}'], "a device, as a word or a number"),
    "empty device map": ([*EXPLAIN, "--device-map", "{}"], "a device, as a word or a number"),
    "chat that is no list": (
        ["explain", MODEL, "--chat", "--prompt-file", f"{WORK}/chat.json"],
        "A chat is a list of messages",
    ),
    "chat with a text in it": (
        ["explain", MODEL, "--chat", "--prompt-file", f"{WORK}/mixed.json"],
        "A chat is a list of messages",
    ),
    "chat without roles": (["explain", MODEL, "--chat", "--prompt-file", f"{WORK}/no-role.json"], "has no `role`"),
    "dtype of a job": ([*DATASET, "--dtype", "int3"], "invalid choice: 'int3'"),
    "batches of 0": ([*DATASET, "--batch-size", "0"], "'0' is not a number of at least 1"),
    "shards of 0": ([*DATASET, "--shard-size", "0"], "'0' is not a number of at least 1"),
    "tokens of a job": ([*DATASET, "--max-new-tokens", "many"], "'many' is not a number of at least 1"),
    "generate that is no JSON": ([*DATASET, "--generate", "{"], "a JSON object is expected"),
    "generate that is a list": ([*DATASET, "--generate", "[1]"], "a JSON object is expected"),
    "generate nested deeply": ([*DATASET, "--generate", "[" * 100_000], "a JSON object is expected"),
    "tokens twice": ([*DATASET, "--max-new-tokens", "2", "--generate", '{"max_new_tokens": 3}'], "leave one out"),
    "an option of the job": ([*DATASET, "--generate", '{"batch_size": 3}'], "['batch_size'] have options of their own"),
    "samples": ([*EVALUATE, "--samples", "0"], "not a number of at least 1"),
    "portions": ([*EVALUATE, "--portions", "0"], "not a number of at least 1"),
    "masks": ([*EVALUATE, "--masks", "1"], "not a number of at least 2"),
    "confidence": ([*EVALUATE, "--confidence", "95"], "'95' is not a number above 0 and below 1"),
    "prompts": ([*EVALUATE, "--max-prompts", "0"], "not a number of at least 1"),
    "a field": ([*EVALUATE, "--where", "split"], "FIELD=VALUE is expected"),
    "a field twice": ([*EVALUATE, "--where", "split=a", "--where", "split=b"], "--where names a field twice"),
    "reference": ([*EVALUATE, "--methods", "random", "--reference", "grad_ellm"], "grad_ellm is not among the methods"),
}
ERRORS = {
    "no prompt": (["explain", MODEL, "--prompt", ""], "--prompt is empty"),
    "no prompt in a file": (["explain", MODEL, "--prompt-file", f"{WORK}/empty.txt"], "empty.txt is empty"),
    "no prompt for a chat": (["explain", MODEL, "--chat", "--prompt", ""], "--prompt is empty"),
    "no system message": ([*EXPLAIN, "--system", ""], "--system is empty"),
    "no target": ([*EXPLAIN, "--target", ""], "--target is empty"),
    "bytes in the prompt": (["explain", MODEL, "--prompt", os.fsdecode(b"caf\xe9")], "--prompt holds bytes that are no text"),
    "a file in Latin-1": (["explain", MODEL, "--prompt-file", f"{WORK}/latin.txt"], "latin.txt: no text in utf-8, from byte 3"),
    "a prompt file that is a folder": (["explain", MODEL, "--prompt-file", f"{WORK}/a folder"], "Is a directory"),
    "a model that is a file": (["explain", f"{WORK}/empty.txt", "--prompt", "a"], "is a file. Name the folder"),
    "a model without a name": (["explain", "", "--prompt", "a"], "MODEL '' is empty"),
    "no GGUF file": ([*EXPLAIN, "--gguf-file", "m.gguf"], "There is no file 'm.gguf' in"),
    "device map": ([*EXPLAIN, "--device-map", "gpu"], "there is no device 'gpu' here. There are cpu"),
    "device map in JSON": ([*EXPLAIN, "--device-map", '{"": "cuda:99"}'], "there is no device 'cuda:99' here"),
    "device map of a job": ([*DATASET, "--device-map", "gpu"], "there is no device 'gpu' here"),
    "page in no folder": ([*EXPLAIN, "--html", f"{WORK}/none/page.html"], "--html '{WORK}/none/page.html': there is no folder"),
    "page through a link to nowhere": ([*EXPLAIN, "--html", f"{WORK}/dangling.html"], "there is no folder '{WORK}/nowhere'"),
    "page in a file": ([*EXPLAIN, "--html", f"{WORK}/empty.txt/page.html"], "'{WORK}/empty.txt' is not a folder"),
    "page that is a folder": ([*EXPLAIN, "--html", f"{WORK}/a folder"], "is a folder. Name a file in it"),
    "page without a name": ([*EXPLAIN, "--html", ""], "is a folder. Name a file in it"),
    "scores in a device": ([*EXPLAIN, "--save", "/dev/null"], "is no ordinary file"),
    "picture without a kind": ([*EXPLAIN, "--png", f"{WORK}/picture"], "the end of the name says what kind"),
    "picture of another kind": ([*EXPLAIN, "--png", f"{WORK}/picture.html"], "and must be one of ."),
    "one file": ([*EXPLAIN, "--save", f"{WORK}/x", "--html", f"{WORK}/x"], "--save and --html are the same file"),
    "one file by other words": (
        [*EXPLAIN, "--png", f"{WORK}/x.png", "--html", f"{WORK}/a folder/../x.png"],
        "--html and --png are the same file",
    ),
    "one file by a link": (
        [*EXPLAIN, "--save", f"{WORK}/page.html", "--html", f"{WORK}/link.html"],
        "--save and --html are the same file",
    ),
    "the question": (
        ["explain", MODEL, "--prompt-file", f"{WORK}/question.txt", "--html", f"{WORK}/question.txt"],
        "--prompt-file and --html are the same file",
    ),
    "what is shown": ([*SHOW, "--save", f"{WORK}/e.safetensors"], "FILE and --save are the same file"),
    "what is shown, by another name": ([*SHOW, "--html", f"{WORK}/hard-link.safetensors"], "FILE and --html are the same file"),
    "a row that is not there": ([*SHOW, "--row", "3"], "There is no row 3"),
    "layers of a job": ([*DATASET, "--explain-config", '{"layers": 0}'], "`layers` must be"),
    "options of a job": ([*DATASET, "--explain-config", '{"layer": 1}'], "Unknown options ['layer']"),
    "no such input": ([*DATASET, "--prompts", f"{WORK}/none.jsonl"], "There is no file"),
    "input of another kind": ([*DATASET, "--prompts", f"{WORK}/empty.txt"], "read from .jsonl and .parquet files"),
    "empty input": ([*DATASET, "--prompts", f"{WORK}/empty.jsonl"], "the input is empty"),
    "empty prompts": ([*DATASET, "--prompts", f"{WORK}/all-empty.jsonl"], "are empty"),
    "column": ([*DATASET, "--column", "text"], "The record has no prompt in 'text'"),
    "output that is a file": ([*DATASET, "--output", f"{WORK}/empty.txt"], "'{WORK}/empty.txt' is not a folder"),
    "output in a file": ([*DATASET, "--output", f"{WORK}/empty.txt/job"], "'{WORK}/empty.txt' is not a folder"),
    "output of another job": ([*DATASET, "--output", f"{WORK}/other job"], "is not the manifest of such a job"),
    "no such method": ([*EVALUATE, "--methods", "grad_ellm,magic"], "`methods` must be different names"),
    "no such metric": ([*EVALUATE, "--metrics", "beauty"], "`metrics` must be different names"),
    "no prompts to evaluate": ([*EVALUATE, "--prompts", f"{WORK}/none.jsonl"], "There is no file"),
    "no such record": ([*EVALUATE, "--where", "split=b"], "No record has {'split': 'b'}"),
    "evaluation into a file": ([*EVALUATE, "--output", f"{WORK}/empty.txt"], "is not a folder"),
    "evaluation into another job": ([*EVALUATE, "--output", f"{WORK}/other job"], "is not the manifest of such a job"),
    "demo into a file": (["demo", "--output", f"{WORK}/empty.txt"], "is not a folder"),
}


def refused(work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """What a command says that is refused with exit code 2 before it loads a model, or writes anything."""
    before = sorted(work.rglob("*"))
    capsys.readouterr()
    try:
        code = main([argument.replace(WORK, str(work)) for argument in arguments])
    except SystemExit as left:
        code = left.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert "Loading" not in captured.err
    assert "Traceback" not in captured.err
    assert sorted(work.rglob("*")) == before
    return captured.err.replace(str(work), WORK)


@pytest.mark.parametrize(("arguments", "message"), [*USAGE.values(), *ERRORS.values()], ids=[*USAGE, *ERRORS])
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message.replace("{WORK}", WORK) in refused(work, capsys, arguments)


@pytest.mark.parametrize("arguments", [[*EXPLAIN, "--png", f"{WORK}/a.png"], EVALUATE], ids=["explain", "evaluate"])
def test_a_picture_without_matplotlib_is_refused_before_a_model_is_loaded(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "matplotlib, which is not installed: pip install matplotlib" in refused(work, capsys, arguments)


def test_a_folder_without_permission_is_refused_before_a_model_is_loaded(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):  # as root may
        monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(locked)))
    assert "there is no permission to write it" in refused(work, capsys, [*EXPLAIN, "--html", str(locked / "page.html")])
    for arguments in (DATASET, EVALUATE):
        error = refused(work, capsys, [*arguments, "--output", str(locked / "job")])
        assert f"there is no permission to write to '{locked}'" in error


def test_a_prompt_file_may_begin_with_a_byte_order_mark(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "marked.txt").write_text("Rome is", encoding="utf-8-sig")
    arguments = ["explain", f"{work}/model", "--prompt-file", f"{work}/marked.txt", "--max-new-tokens", "2", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["text"].startswith("Rome is")


def test_a_file_that_cannot_be_written_does_not_keep_the_others_from_it(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Explanation, path: Path, **options: object) -> None:
        raise OSError(28, "No space left on device")

    page = tmp_path / "page.html"
    monkeypatch.setattr(Explanation, "save", full)
    call = [argument.replace(WORK, str(work)) for argument in SHOW]
    assert main([*call, "--save", str(tmp_path / "copy"), "--html", str(page), "--json"]) == 1
    captured = capsys.readouterr()
    assert "/copy' was not written: [Errno 28] No space left on device" in captured.err
    assert "old" in page.read_text()
    assert json.loads(captured.out)["text"] == "Rome is old"


def test_jobs_of_which_some_failed_are_1_and_say_what_failed(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, verb in (([*DATASET, "--batch-size", "1"], "explained"), ([*EVALUATE, "--no-plots"], "evaluated")):
        fast = ["--max-new-tokens", "2", *([] if verb == "explained" else ["--methods", "random", "--metrics", "soft_ns"])]
        call = [argument.replace(WORK, str(work)) for argument in arguments]
        assert main([*call, *fast, "--output", str(tmp_path / verb)]) == 1
        error = capsys.readouterr().err
        assert "Prompt 1 " in error
        assert "InvalidInputError: The prompt is empty" in error
    (tmp_path / "good.jsonl").write_text('{"prompt": "Rome is"}\n')
    call = [argument.replace(WORK, str(work)) for argument in DATASET]
    call[call.index("--prompts") + 1] = str(tmp_path / "good.jsonl")
    assert main([*call, "--max-new-tokens", "2", "--output", str(tmp_path / "good")]) == 0


def test_of_many_failed_prompts_the_first_are_named_and_the_others_counted(capsys: pytest.CaptureFixture[str]) -> None:
    print_errors(dict.fromkeys(range(37), "it failed"), "explained", dict.fromkeys(range(37)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Prompt 0 was not explained: it failed"
    assert lines[-1] == "... and 27 more were not."
    assert len(lines) == 11


@pytest.mark.parametrize("name", ["dataset", "evaluate"])
def test_a_module_run_by_itself_is_its_command(name: str) -> None:
    command = [sys.executable, "-m", f"gradellm_hf.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert f"usage: gradellm {name}" in done.stdout


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_with_a_damaged_file_is_named_with_what_is_wrong(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(work / "model", model)
    path = model / damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main(["explain", str(model), "--prompt", "Rome is"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"gradellm: error: No model could be loaded from '{model}': ")


def test_all_pictures_are_written_of_tasks_whose_names_differ_in_what_no_file_can_be_named(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[dict[str, Any]] = [{"prompt": "Rome is", "task": "a/b"}, {"prompt": "Rome was", "task": "a:b"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    call = [argument.replace(WORK, str(work)) for argument in EVALUATE]
    call[call.index("--prompts") + 1] = str(tmp_path / "prompts.jsonl")
    assert main([*call, "--methods", "random", "--metrics", "soft_ns", "--output", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").glob("costs*")} == {"costs_a_b.png", "costs_a_b_.png", "costs_all.png"}
