"""Attacks on the command line, through `main`: the exit code, and what it says."""

import contextlib
import functools
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gradellm_hf.cli import main
from tests.support.explained import explanation_of

from .outcomes import Attack, Judge, Outcome, Verdict
from .world import World


class _Ended(NamedTuple):
    code: Any
    out: str
    err: str


def attacks(world: World) -> Iterator[Attack]:
    folder, model = world.folder, str(world.folder / "model")
    explanation_of(["Rome", " is", " old"], 2).save(folder / "saved.safetensors")
    world.out.save(folder / "output.safetensors", world.tokenizer)
    files = {"empty.txt": b"", "latin.txt": "caf\xe9".encode("latin-1"), "chat.json": b"{}", "deep.json": b"[" * 100_000}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        broken = folder / f"without {name}"
        shutil.copytree(model, broken)
        content = (broken / name).read_bytes()
        (broken / name).write_bytes(content[: len(content) // 2])
    for name, arguments, judge in _calls(folder, model):
        yield Attack("command line", name, functools.partial(_run, arguments), judge)


def _calls(folder: Path, model: str) -> Iterator[tuple[str, list[str], Judge]]:
    explain = ["explain", model, "--prompt", "Rome is", "--max-new-tokens", "1"]
    show = ["show", f"{folder}/saved.safetensors"]
    job = [
        "dataset",
        model,
        "--prompts",
        f"{folder}/prompts.jsonl",
        "--output",
        f"{folder}/cli",
        "--max-new-tokens",
        "1",
    ]
    evaluate = ["evaluate", model, "--prompts", f"{folder}/prompts.jsonl", "--output", f"{folder}/cli2", "--no-plots"]
    known: dict[str, tuple[list[str], str]] = {  # before a model is loaded
        "no command": ([], "COMMAND"),
        "no such command": (["nonsense"], "invalid choice"),
        "no prompt": (["explain", model], "--prompt"),
        "an empty prompt": (["explain", model, "--prompt", ""], "--prompt is empty"),
        "an empty prompt file": (["explain", model, "--prompt-file", f"{folder}/empty.txt"], "is empty"),
        "a prompt file in Latin-1": (["explain", model, "--prompt-file", f"{folder}/latin.txt"], "utf-8"),
        "no prompt file": (["explain", model, "--prompt-file", f"{folder}/none.txt"], "none.txt"),
        "a chat that is none": (["explain", model, "--chat", "--prompt-file", f"{folder}/chat.json"], "chat"),
        "a chat nested deeply": (["explain", model, "--chat", "--prompt-file", f"{folder}/deep.json"], "chat"),
        "an empty target": ([*explain[:4], "--target", ""], "--target is empty"),
        "a target, and new tokens": ([*explain, "--target", " old"], "--max-new-tokens"),
        "no such model": (["explain", f"{folder}/none", "--prompt", "a"], "no folder"),
        "a file as model": (["explain", f"{folder}/empty.txt", "--prompt", "a"], "is a file"),
        "no such dtype": ([*explain, "--dtype", "int3"], "int3"),
        "no such device": ([*explain, "--device-map", "gpu"], "gpu"),
        "no layers": ([*explain, "--layers", "0"], "layers"),
        "layers of words": ([*explain, "--layers", "last"], "last"),
        "no tokens": ([*explain, "--max-new-tokens", "0"], "--max-new-tokens"),
        "a temperature of NaN": ([*explain, "--do-sample", "--temperature", "nan"], "--temperature"),
        "a temperature without sampling": ([*explain, "--temperature", "2"], "--do-sample"),
        "no top": ([*explain, "--top", "0"], "--top"),
        "a page in no folder": ([*explain, "--html", f"{folder}/none/a.html"], "--html"),
        "a page onto a folder": ([*explain, "--html", model], "--html"),
        "a picture of no kind": ([*explain, "--png", f"{folder}/a.unknown"], "--png"),
        "a picture without a kind": ([*explain, "--png", f"{folder}/a"], "--png"),
        "two outputs, one file": ([*explain, "--html", f"{folder}/a", "--save", f"{folder}/model/../a"], "same file"),
        "scores onto a device": ([*explain, "--save", "/dev/null"], "--save"),
        "an output onto what is shown": ([*show, "--html", f"{folder}/saved.safetensors"], "same file"),
        "a row below 0": ([*show, "--row", "-1"], "--row"),
        "a row that is not there": ([*show, "--row", "3"], "row 3"),
        "a row that the output has not": (["show", f"{folder}/output.safetensors", "--row", "1"], "row 1"),
        "nothing to show": (["show", f"{folder}/none"], "none"),
        "a text to show": (["show", f"{folder}/latin.txt"], "latin.txt"),
        "a model to show": (["show", f"{model}/model.safetensors"], "model.safetensors"),
        "a tolerance of NaN": (["verify", model, "--tolerance", "nan"], "--tolerance"),
        "a seed below 0": (["verify", model, "--seed", "-1"], "--seed"),
        "no input": ([*job, "--prompts", f"{folder}/none.jsonl"], "none.jsonl"),
        "an input of no kind": ([*job, "--prompts", f"{folder}/latin.txt"], "latin.txt"),
        "a job onto a file": ([*job, "--output", f"{folder}/empty.txt"], "empty.txt"),
        "a job with no such layers": ([*job, "--explain-config", '{"layers": 0}'], "layers"),
        "a job with an unknown option": ([*job, "--explain-config", '{"layer": 1}'], "layer"),
        "a job with JSON that is none": ([*job, "--explain-config", "{"], "JSON"),
        "a job with a list": ([*job, "--generate", "[]"], "JSON"),
        "a job with an option of its own": ([*job, "--generate", '{"batch_size": 2}'], "batch_size"),
        "a job with two numbers of tokens": ([*job, "--generate", '{"max_new_tokens": 2}'], "max_new_tokens"),
        "no such column": ([*job, "--column", "text"], "text"),
        "no such method": ([*evaluate, "--methods", "magic"], "magic"),
        "no such metric": ([*evaluate, "--metrics", "magic"], "magic"),
        "no such reference": ([*evaluate, "--reference", "magic"], "magic"),
        "a confidence of 95": ([*evaluate, "--confidence", "95"], "--confidence"),
        "no such records": ([*evaluate, "--where", "task=none"], "none"),
        "a condition that is none": ([*evaluate, "--where", "task"], "--where"),
        "the demo onto a file": (["demo", "--output", f"{folder}/empty.txt"], "empty.txt"),
    }
    for name, (arguments, word) in known.items():
        yield name, arguments, _refused(word)
    late: dict[str, tuple[list[str], str]] = {
        "layers out of range": ([*explain, "--layers", "9"], "layers"),
        "an unknown option of generate": ([*job, "--generate", '{"max_new_token": 2}'], "max_new_token"),
        **{
            f"half of {name}": (["explain", f"{folder}/without {name}", "--prompt", "a"], "No model could be loaded")
            for name in ("config.json", "model.safetensors", "tokenizer.json")
        },
    }
    for name, (arguments, word) in late.items():
        yield name, arguments, _refused(word, loads=True)
    yield "a good prompt", [*explain, "--json"], _ended(0, '"Rome is')
    yield "what was saved", show, _ended(0, "old")
    yield "a good job", job, _ended(0)
    yield "the same job again", job, _ended(0)
    yield "a good model", ["verify", model], _ended(0, "exact")
    yield "no tolerance at all", ["verify", model, "--tolerance", "0"], _ended(1, "NOT exact")
    yield "the names", ["evaluate", "--list"], _ended(0, "grad_ellm")


def _run(arguments: list[str]) -> _Ended:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = main(arguments)
        except SystemExit as left:
            code = left.code
    return _Ended(code, out.getvalue(), err.getvalue())


def _refused(word: str, *, loads: bool = False) -> Judge:
    """Right is exit code 2, nothing on standard output, a message with this word, and no model loaded before (or `loads`)."""

    def judge(ended: Any, error: BaseException | None) -> Verdict:
        if error is not None:
            return Outcome.UNCLEAR, f"ended in {error!r}"
        last = (ended.err.strip().splitlines() or [""])[-1]
        if ended.code == 0 or ended.out:
            return Outcome.SILENT, f"exit code {ended.code}: {ended.out[:80]!r} {last}"
        clear = (
            ended.code == 2 and word in ended.err and "Traceback" not in ended.err and "--debug shows where" not in ended.err
        )
        if not clear or (not loads and "Loading" in ended.err):
            return Outcome.UNCLEAR, f"exit code {ended.code}: {ended.err.strip()[-160:]}"
        return Outcome.CLEAR, ""

    return judge


def _ended(code: int, word: str = "") -> Judge:
    """Right is this exit code, and this word on standard output."""

    def judge(ended: Any, error: BaseException | None) -> Verdict:
        if error is not None or ended.code != code:
            return Outcome.UNCLEAR, f"{error!r} {ended}"
        return (Outcome.RIGHT, "") if word in ended.out else (Outcome.SILENT, f"printed {ended.out[:80]!r}")

    return judge
