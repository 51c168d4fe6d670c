"""`gradellm evaluate`: what it prints and writes, alone and in two processes, and how it fails."""

import json
import os
import subprocess
import sys

import pytest
import torch

from gradellm_hf.cli import main
from gradellm_hf.evaluation import METRICS, load_evaluation
from tests.support import ROOT
from tests.support.evaluated import PROMPTS, model_and_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    llama, tokenizer = model_and_tokenizer()
    llama.save_pretrained(path)
    tokenizer.save_pretrained(path)
    with (path / "prompts.jsonl").open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in PROMPTS)
    return path


def arguments(folder, output):
    return [
        *["evaluate", str(folder), "--prompts", str(folder / "prompts.jsonl"), "--output", str(output)],
        *["--methods", "grad_ellm,random", "--metrics", "pi_soft_ns,deletion", "--portions", "2", "--max-new-tokens", "2"],
    ]


def test_the_command_prints_tables_and_writes_data_tables_and_pictures(folder, tmp_path, capsys):
    assert main(arguments(folder, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "results.md").read_text()
    assert "## first\n\n2 prompts\n" in printed
    assert "## all\n\n4 prompts\n" in printed
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["manifest"]["num_prompts"] == 4
    assert {(row["task"], row["method"], row["metric"]) for row in data["summary"]["rows"]} == {
        (task, method, metric)
        for task in ("first", "second", "all")
        for method in ("grad_ellm", "random")
        for metric in ("pi_soft_ns", "deletion")
    }
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {f"{kind}_{task}.png" for kind in ("curves", "costs") for task in ("first", "second", "all")}


def test_a_task_in_which_nothing_was_measured_has_no_picture(folder, tmp_path, capsys):
    options = arguments(folder, tmp_path)
    options[options.index("--metrics") + 1] = "auc"
    assert main(options) == 0  # only the first task has a rationale
    assert {path.name for path in tmp_path.glob("*.png")} == {"costs_first.png", "costs_all.png"}
    assert "## second" in capsys.readouterr().out


def test_two_processes_find_what_one_finds(folder, tmp_path):
    assert main([*arguments(folder, tmp_path / "one"), "--no-plots"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = [*launch, "gradellm_hf.evaluate", *arguments(folder, tmp_path / "two")[1:], "--no-plots"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    root = ROOT
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=root)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "two").glob("records*")} == {"records-00000.jsonl", "records-00001.jsonl"}
    one, two = (load_evaluation(tmp_path / name) for name in ("one", "two"))
    assert list(one.records) == list(two.records) == [0, 1, 2, 3]
    for metric in one.metrics:
        torch.testing.assert_close(two.values(metric), one.values(metric), rtol=1e-3, atol=1e-6)


def test_the_command_fails_where_nothing_could_be_evaluated(folder, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": ""}\n')
    options = arguments(folder, tmp_path / "out")
    options[options.index("--prompts") + 1] = str(tmp_path / "prompts.jsonl")
    assert main(options) == 1
    assert "Prompt 0 was not evaluated: InvalidInputError: The prompt is empty" in capsys.readouterr().err


def test_the_command_lists_the_names_that_there_are(capsys):
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "--list"])
    assert left.value.code == 0
    printed = capsys.readouterr().out.split()
    assert {"grad_ellm", "leave_one_out", *METRICS} <= set(printed)
