"""The script that breaks the package on purpose finds tests for each of its files, and sees what they notice."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import mutate
from tests.support import ROOT

pytestmark = pytest.mark.slow

_MODULES = [path.relative_to(ROOT) for package in ("gradellm_hf", "model_patches") for path in (ROOT / package).rglob("*.py")]


def test_every_test_that_the_script_names_is_there():
    names = {*mutate.SLOW, *(name for names in mutate.NOTICED_BY.values() for name in names)}
    there = {path.stem.removeprefix("test_") for path in ROOT.glob("tests/**/test_*.py")}
    assert names - there == set()


def test_every_file_that_the_script_names_is_there():
    there = {path.stem for path in _MODULES} | {f"{path.parent.name}/" for path in _MODULES}
    assert set(mutate.NOTICED_BY) - there == set()


def test_every_file_of_the_package_has_tests_and_they_are_there():
    for module in _MODULES:
        tests = mutate.tests_of(module)
        assert tests, module
        assert all((ROOT / test).is_file() for test in tests), module


def test_a_file_without_an_entry_has_the_tests_of_its_name_or_else_of_its_folder():
    assert mutate.tests_of(Path("gradellm_hf/text/units.py")) == ["tests/text/test_units.py"]
    assert mutate.tests_of(Path("gradellm_hf/metrics/ranks.py")) == sorted(
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/metrics/test_*.py")
    )


def test_the_rest_of_the_suite_leaves_out_what_has_run_and_what_is_slow():
    rest = mutate.rest_of_suite(["tests/text/test_units.py"])
    assert "tests/text/test_chats.py" in rest
    assert not {"tests/text/test_units.py", "tests/project/test_docs.py"} & set(rest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("assert may_pass('OSError: full') and not may_pass('InvalidInputError: no row')", "::test_it |\n\n2 of 2 noticed."),
        ("assert callable(may_pass)", "**survived** |\n\n0 of 2 noticed."),
    ],
)
def test_a_break_is_noticed_by_the_tests_that_look_at_it_and_survives_others(test, outcome, tmp_path):
    (tmp_path / "test_made_up.py").write_text(f"from gradellm_hf.errors import may_pass\n\ndef test_it():\n    {test}\n")
    text = (ROOT / "gradellm_hf/errors.py").read_text(encoding="utf-8")
    (line,) = (i for i, line in enumerate(text.splitlines(), 1) if "error.partition" in line)
    command = [sys.executable, "-m", "scripts.mutate", "gradellm_hf/errors.py", "--line", str(line)]
    done = subprocess.run([*command, "--tests", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(outcome)
    assert (ROOT / "gradellm_hf/errors.py").read_text(encoding="utf-8") == text
