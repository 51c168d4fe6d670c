"""Thousands of bad inputs and damaged files: none is taken silently, and none ends in an error that says nothing."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow


def test_every_bad_input_gets_a_clear_error_and_every_good_one_the_right_value(tmp_path):
    """In a process of its own, as it registers methods and a pipeline. Few damaged files; the whole attack is run by itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.attack", "--files", "10"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    table = {line[:28].strip(): line.split()[-4:] for line in done.stdout.splitlines()}
    right, clear, silent, unclear = map(int, table["all"])
    assert (silent, unclear) == (0, 0)
    assert right + clear > 1500
