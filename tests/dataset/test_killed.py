"""A job over many prompts, killed again and again, or shared by two processes, comes to the same result."""

import json
import os
import signal
import subprocess
import sys

import pytest

from gradellm_hf.cli import main
from gradellm_hf.dataset import load_dataset_explanations
from tests.support import ROOT
from tests.support.dataset_job import contents, texts, write_job

pytestmark = pytest.mark.distributed

PROMPTS, KILLS = 70, 10


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result


def test_a_job_that_was_killed_ten_times_ends_as_an_undisturbed_one(tmp_path):
    report = json.loads(
        run([sys.executable, "-m", "tests.support.dataset_job", str(tmp_path), str(PROMPTS), str(KILLS)]).stdout.splitlines()[
            -1
        ]
    )
    assert report["undisturbed"] == report["last"] == 0
    assert report["statuses"] == [signal.SIGKILL] * KILLS, "a job came to its end before it was killed"
    assert report["done"] == sorted(report["done"]), "work that was done is gone"
    assert 0 < report["done"][-1] < PROMPTS // 2, f"{report}: it should have been killed in the middle"
    expected, found = contents(tmp_path / "undisturbed"), contents(tmp_path / "killed")
    assert len(expected) == PROMPTS // 2 + 1
    assert found == expected
    explanations = load_dataset_explanations(tmp_path / "killed")
    assert not explanations.errors
    for text, explanation in zip(texts(PROMPTS), explanations, strict=True):
        assert explanation.text.startswith(text)
        assert len(explanation.attributions) == 8


def test_two_processes_do_what_one_does_and_one_goes_on_where_two_were_stopped(tmp_path):
    arguments = write_job(tmp_path, 12)
    assert main(["dataset", *arguments, "--output", str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = run([*launch, "gradellm_hf.dataset", *arguments, "--output", str(tmp_path / "two")])
    assert done.stderr.count("12 of 12 prompts explained") == 1, "they did not know of each other"
    expected = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == expected
    for number in (1, 2, 5):
        (tmp_path / "two" / f"shard-{number:06d}.safetensors").unlink()
    assert main(["dataset", *arguments, "--output", str(tmp_path / "two")]) == 0
    assert contents(tmp_path / "two") == expected
