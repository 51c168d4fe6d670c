"""The command line: what it prints where, what it writes, and how it fails."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gradellm_hf
from gradellm_hf import GradELLMConfig, explain_generate
from gradellm_hf.cli import explain, main
from gradellm_hf.cli.command_line import COMMANDS
from gradellm_hf.demo_model import smollm2_folder
from gradellm_hf.model import GradELLM
from gradellm_hf.results.explanation import Explanation
from tests.support.explained import explanation_of
from tests.support.small_llama import small_llama

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is Paris. The capital of Italy is"


@pytest.fixture(scope="module")
def folder(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model of random weights with a real tokenizer, as a folder."""
    path, tokenizer = tmp_path_factory.mktemp("model"), smollm2[1]
    small_llama(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved explanation of text that Latin-1 has no characters for."""
    path = tmp_path_factory.mktemp("saved") / "explanation.safetensors"
    explanation_of(["The", " caf\xe9", " in", " \u4eac\u90fd", " \U0001f600", " opens"], 3).save(path)
    return path


def gradellm(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gradellm_hf", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_the_real_command_answers_and_explains_as_python_does(smollm2: Any, tmp_path: Path) -> None:
    saved = tmp_path / "answer.safetensors"
    options = ["--max-new-tokens", "3", "--json", "--top", "2", "--save", str(saved)]
    done = gradellm("explain", str(smollm2_folder()), "--prompt", PROMPT, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # nothing else is on standard output
    assert "Loading" in done.stderr
    model, tokenizer = smollm2
    out: Any = explain_generate(model, **tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert result["token_ids"] == out.sequences[0].tolist()
    assert "".join(result["tokens"]) == result["text"]
    assert result["text"].startswith(PROMPT + " Rome")
    for n, step in enumerate(result["steps"]):
        scores = out.attributions[0, n, : out.prompt_length + n]
        torch.testing.assert_close(torch.tensor(step["attributions"]), scores, rtol=1e-3, atol=1e-3)
        assert len(step["strongest"]) == 2
        best = step["strongest"][0]
        assert result["tokens"][best["position"]] == best["token"]
        assert best["score"] == step["attributions"][best["position"]]
    loaded = Explanation.load(saved)
    torch.testing.assert_close(loaded.attributions, out.attributions[0], rtol=1e-3, atol=1e-3)


def test_help_is_shown_without_loading_torch() -> None:
    stub = "import sys, types; p = types.ModuleType('gradellm_hf'); p.__path__ = [{!r}]; sys.modules['gradellm_hf'] = p\n"
    code = stub.format(str(Path(gradellm_hf.__file__).parent)) + (
        "from gradellm_hf.cli import main\n"
        "from gradellm_hf.cli.command_line import COMMANDS\n"
        "for arguments in [['--help']] + [[name, '--help'] for name in COMMANDS]:\n"
        "    try: main(arguments)\n"
        "    except SystemExit as e: assert e.code == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert re.search(rf"\n    {name}\s", done.stdout)
    for name in COMMANDS:
        assert f"usage: gradellm {name}" in done.stdout
    assert done.stdout.count("\nexample") == len(COMMANDS)  # of the overview, and of each command but the demo


def test_every_command_describes_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name, summary in COMMANDS.items():
        with pytest.raises(SystemExit) as exit_:
            main([name, "--help"])
        assert exit_.value.code == 0
        assert summary[1:] in capsys.readouterr().out.replace("\n", " ")


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).with_name("gradellm")
    done = subprocess.run([command, "nonsense"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'nonsense'" in done.stderr


def test_ctrl_c_is_130(folder: str) -> None:
    command = [sys.executable, "-m", "gradellm_hf", "explain", folder, "--prompt-file", "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("Hello")
    process.stdin.close()
    while not process.stderr.readline().startswith("Loading"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    error = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert error.endswith("gradellm: interrupted\n")
    assert "Traceback" not in error


def test_a_prompt_is_answered_and_shown_as_lines(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", folder, "--prompt", PROMPT, "--max-new-tokens", "4", "--top", "2"]) == 0
    captured = capsys.readouterr()
    expected = GradELLM.from_pretrained(folder).explain(PROMPT, max_new_tokens=4, do_sample=False)
    assert captured.out == expected.render(top=2) + "\n"
    assert "Loading" in captured.err


def test_options_reach_generation_and_explanation(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = GradELLM.from_pretrained(folder)
    call = ["explain", folder, "--prompt", PROMPT, "--max-new-tokens", "5"]
    sampled = run_json(capsys, *call, "--do-sample", "--temperature", "2.5", "--top-p", "0.9", "--top-k", "30", "--seed", "4")
    torch.manual_seed(4)
    kwargs = {"max_new_tokens": 5, "do_sample": True, "temperature": 2.5, "top_p": 0.9, "top_k": 30}
    assert sampled["text"] == model.explain(PROMPT, **kwargs).text
    greedy = run_json(capsys, *call)
    assert greedy["text"] != sampled["text"]
    beams = run_json(capsys, *call, "--num-beams", "3")
    assert beams["text"] == model.explain(PROMPT, max_new_tokens=5, do_sample=False, num_beams=3).text
    assert run_json(capsys, *call, "--layers", "2")["layers"] == [3, 4]
    for steps, left in (("2:", [2, 3, 4]), ("-2:", [3, 4]), ("::3", [0, 3]), ("0,-1", [0, 4]), ("1", [1])):
        some = run_json(capsys, *call, f"--steps={steps}")
        assert [step["position"] - some["prompt_length"] for step in some["steps"]] == left
    assert "nothing to explain: 5 tokens are generated" in usage_error(capsys, *call, "--steps", "100:")
    assert run_json(capsys, *call, "--layers", "0,-1")["layers"] == [0, 4]
    loosened = run_json(capsys, *call, "--preset", "loosened")
    expected = model.explain(PROMPT, max_new_tokens=5, do_sample=False, explain_config=GradELLMConfig(spatial="loosened"))
    torch.testing.assert_close(
        torch.tensor(loosened["steps"][0]["attributions"]), expected.attributions[0, :-5], rtol=1e-3, atol=1e-3
    )
    assert loosened["steps"][0]["attributions"] != greedy["steps"][0]["attributions"]
    bfloat16 = run_json(capsys, *call, "--dtype", "bfloat16", "--device-map", '{"": "cpu"}')
    assert bfloat16["steps"][0]["attributions"] != greedy["steps"][0]["attributions"]


def test_a_target_is_explained_instead_of_generating(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "explain", folder, "--prompt", PROMPT, "--target", " Rome, of course")
    assert result["text"] == PROMPT + " Rome, of course"
    assert "".join(step["token"] for step in result["steps"]) == " Rome, of course"


def test_chats_come_from_a_prompt_a_file_or_a_list_of_messages(
    folder: str, smollm2: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
    expected = smollm2[1].apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    (tmp_path / "prompt.txt").write_text("Say hello.")
    (tmp_path / "chat.json").write_text(json.dumps(messages))
    tail = ["--max-new-tokens", "2"]
    for arguments in (
        ["--prompt", "Say hello.", "--system", "Be brief."],
        ["--prompt-file", str(tmp_path / "prompt.txt"), "--chat", "--system", "Be brief."],
        ["--prompt-file", str(tmp_path / "chat.json"), "--chat"],
    ):
        result = run_json(capsys, "explain", folder, *arguments, *tail)
        assert "".join(result["tokens"][: result["prompt_length"]]) == expected
    plain = run_json(capsys, "explain", folder, "--prompt-file", str(tmp_path / "prompt.txt"), *tail)
    assert plain["text"].startswith("Say hello.")
    (tmp_path / "chat.json").write_text("no json")
    assert "not a JSON list" in usage_error(capsys, "explain", folder, "--chat", "--prompt-file", str(tmp_path / "chat.json"))


def test_what_was_saved_is_shown_and_written_as_page_and_picture(
    folder: str, smollm2: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "explanation.safetensors"
    first = run_json(capsys, "explain", folder, "--prompt", PROMPT, "--max-new-tokens", "3", "--save", str(saved))
    assert run_json(capsys, "show", str(saved)) == first
    page, picture = tmp_path / "page.html", tmp_path / "heatmap.png"
    assert main(["show", str(saved), "--html", str(page), "--png", str(picture)]) == 0
    assert "Italy" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err.splitlines() == [f"Wrote {page}", f"Wrote {picture}"]

    model, tokenizer = GradELLM.from_pretrained(folder), smollm2[1]
    inputs = tokenizer([PROMPT, "Hello"], return_tensors="pt", padding=True)
    out = model.generate(**inputs, max_new_tokens=3)
    out.save(tmp_path / "output.safetensors", tokenizer)
    assert main(["show", str(saved), "--row", "1"]) == 2
    assert "There is no row 1: " in capsys.readouterr().err
    assert "'-1' is not a number of at least 0" in usage_error(capsys, "show", str(saved), "--row", "-1")
    shown = run_json(capsys, "show", str(tmp_path / "output.safetensors"), "--row", "1")
    assert shown["tokens"][0] == "Hello"
    assert shown["prompt_length"] == 1


def test_verify_says_whether_the_engines_agree(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "verify", folder)
    assert result["exact"]
    assert 0 < result["difference"] < 1e-4
    assert main(["verify", folder, "--tolerance", "0"]) == 1
    assert "NOT exact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["explain", "m"], "one of the arguments --prompt --prompt-file is required"),
        (["explain", "m", "--prompt", "a", "--prompt-file", "b"], "not allowed with"),
        (["explain", "m", "--prompt", "a", "--layers", "first"], "'first' is not all, a number"),
        (["explain", "m", "--prompt", "a", "--layers", "0"], "`layers` must be"),
        (["explain", "m", "--prompt", "a", "--steps", "last"], "'last' is no slice"),
        (["explain", "m", "--prompt", "a", "--steps", "::0"], "'::0' is no slice"),
        (["explain", "m", "--prompt", "a", "--steps", "1:2:3:4"], "'1:2:3:4' is no slice"),
        (["explain", "m", "--prompt", "a", "--steps", "1:", "--foil", " b"], "leave --steps out"),
        (["explain", "m", "--prompt", "a", "--temperature", "2"], "--temperature needs --do-sample"),
        (["explain", "m", "--prompt", "a", "--target", "b", "--max-new-tokens", "3"], "leave out --max-new-tokens"),
        (["explain", "m", "--prompt", "a", "--dtype", "int3"], "invalid choice"),
        (["explain", "m", "--prompt", "a", "--device-map", "{cpu"], "not a JSON object"),
        (["explain", "m", "--prompt", "a", "--unknown"], "unrecognized arguments"),
        (["show", "f", "--top", "0"], "not a number of at least 1"),
    ],
)
def test_bad_usage_is_2_and_names_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in usage_error(capsys, *arguments)


def test_errors_are_one_line_and_2(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failure(*arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        last = captured.err.splitlines()[-1]
        assert last.startswith("gradellm: error: ")
        return last

    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no explanation")
    assert "There is no folder '/no/such'" in failure("explain", "/no/such", "--prompt", "a")
    assert "No model could be loaded from" in failure("explain", str(tmp_path / "empty"), "--prompt", "a")
    assert "has 5 attention layers" in failure("explain", folder, "--prompt", "a", "--layers", "9")
    assert "There is no file" in failure("show", str(tmp_path / "missing"))
    assert "notes.txt" in failure("show", str(tmp_path / "notes.txt"))
    assert "No such file" in failure("explain", folder, "--prompt-file", str(tmp_path / "missing"))


def test_too_little_memory_says_what_to_try(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def exhausted(options: argparse.Namespace) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")

    monkeypatch.setattr(explain, "run", exhausted)
    assert main(["explain", "m", "--prompt", "a"]) == 2
    assert "not enough memory. Try --dtype bfloat16" in capsys.readouterr().err


def test_an_unexpected_error_shows_its_traceback_with_debug_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(options: argparse.Namespace) -> int:
        raise ZeroDivisionError("what is this")

    monkeypatch.setattr(explain, "run", broken)
    assert main(["explain", "m", "--prompt", "a"]) == 2
    assert capsys.readouterr().err == "gradellm: error: ZeroDivisionError: what is this (--debug shows where)\n"
    for arguments in (["--debug", "explain", "m", "--prompt", "a"], ["explain", "m", "--prompt", "a", "--debug"]):
        with pytest.raises(ZeroDivisionError):
            main(arguments)


@pytest.mark.parametrize("arguments", [["show", "FILE", "--json"], ["--help"], ["evaluate", "--list"]], ids=" ".join)
def test_output_that_nobody_reads_ends_the_command_quietly(saved: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "gradellm_hf", *(str(saved) if part == "FILE" else part for part in arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=environment)
    os.close(writer)
    assert done.returncode == 141
    for complaint in ("Traceback", "Exception ignored", "Broken pipe", "gradellm:"):
        assert complaint not in done.stderr


def test_messages_that_nobody_reads_end_the_command_quietly(folder: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "gradellm_hf", "verify", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no disk that is always full")
def test_a_full_disk_behind_the_output_is_an_error(saved: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "gradellm_hf", "show", str(saved)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_closed_output_still_writes_the_files(saved: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = f'exec "{sys.executable}" -m gradellm_hf show "{saved}" --html "{page}" >&- 2>&-'
    done = subprocess.run(["bash", "-c", command], timeout=60, check=False)
    assert done.returncode == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_an_encoding_without_the_characters_replaces_them_and_json_escapes_them(saved: Path) -> None:
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "gradellm_hf", "show", str(saved)]
    lines, as_json, expected = (
        subprocess.run([*command, *options], capture_output=True, env=environment, timeout=60, check=True).stdout
        for options, environment in (([], latin), (["--json"], latin), (["--json"], {**latin, "PYTHONIOENCODING": "utf-8"}))
    )
    assert "caf\xe9" in lines.decode("latin-1")
    assert "\u4eac" not in lines.decode("latin-1")
    assert "?" in lines.decode("latin-1")
    assert json.loads(as_json.decode("latin-1")) == json.loads(expected.decode())
    assert "\u4eac" in json.loads(as_json.decode("latin-1"))["text"]
