"""Where Python finds another package named `model_patches`, the error says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

_USES = {
    "an adapter by its public name": "from gradellm_hf import register_adapter",
    "what the package itself looks up": "import gradellm_hf.architecture.layout",
}


def imported(code: str, *path: Path, cwd: Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """A fresh interpreter that finds modules in these folders first."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, *options, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def other(tmp_path) -> Path:
    folder = tmp_path / "other" / "model_patches"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("def patch_model(model): ...\n")
    return folder


@pytest.mark.parametrize("use", _USES.values(), ids=_USES)
def test_another_package_of_that_name_is_named_with_its_place_and_what_to_do(use, other, tmp_path):
    done = imported(use, other.parent, ROOT, cwd=tmp_path)
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("ImportError: gradellm_hf comes with a package named `model_patches`, and Python finds another one")
    assert repr(str(other / "__init__.py")) in error
    assert "rename it" in error
    assert "pip install --force-reinstall --no-deps`" in error


def test_another_package_that_fails_with_an_error_of_its_own_is_named_too(other, tmp_path):
    (other / "__init__.py").write_text("raise RuntimeError('no GPU')\n")
    done = imported(_USES["an adapter by its public name"], other.parent, ROOT, cwd=tmp_path)
    assert f"{str(other / '__init__.py')!r} (RuntimeError: no GPU)" in done.stderr


def test_a_missing_package_is_not_called_another_one(tmp_path):
    code = "import sys; sys.modules['model_patches'] = None; import gradellm_hf.architecture.adapters"
    done = imported(code, ROOT, cwd=tmp_path)
    assert "and Python finds none (ModuleNotFoundError" in done.stderr


def test_another_package_installed_over_ours_is_named_too(other, tmp_path):
    shutil.copytree(ROOT / "gradellm_hf", other.parent / "gradellm_hf", ignore=shutil.ignore_patterns("__pycache__"))
    done = imported(_USES["an adapter by its public name"], other.parent, cwd=tmp_path)
    assert "finds another one" in done.stderr


def test_a_folder_of_that_name_in_place_of_ours_is_named_too(other, tmp_path):
    (other / "__init__.py").unlink()
    shutil.copytree(ROOT / "gradellm_hf", other.parent / "gradellm_hf", ignore=shutil.ignore_patterns("__pycache__"))
    nothing_installed = ("-S",)
    done = imported(_USES["an adapter by its public name"], other.parent, cwd=tmp_path, options=nothing_installed)
    assert f"finds another one of that name, at {str(other)!r}" in done.stderr


def test_what_is_wrong_with_the_right_package_is_said_as_it_is(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from gradellm_hf import register_adapter"
    done = imported(code, ROOT, cwd=tmp_path)
    assert done.stderr.strip().splitlines()[-1].startswith("ModuleNotFoundError: import of torch halted")


def test_the_public_names_are_those_of_model_patches():
    import gradellm_hf
    import model_patches

    assert gradellm_hf.ArchitectureAdapter is model_patches.ArchitectureAdapter
    assert gradellm_hf.register_adapter is model_patches.register_adapter
