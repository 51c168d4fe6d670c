"""Folders that jobs write to."""

import subprocess
import sys

import pytest

from gradellm_hf import InvalidInputError
from gradellm_hf.jobs.processes import only_writer

HOLD = """
import sys
from pathlib import Path
from gradellm_hf.jobs.processes import only_writer
with only_writer(Path(sys.argv[1])):
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_writer_until_that_ends_even_if_it_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "writing\n"
        with pytest.raises(InvalidInputError, match="Another job is writing to"), only_writer(tmp_path):
            pass
        other.kill()
        other.wait()
        with only_writer(tmp_path):
            pass


def test_a_writer_leaves_the_folder_to_the_next_also_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path):
        raise ZeroDivisionError
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
