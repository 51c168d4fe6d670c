"""The wheel and the sdist as they are built, and what importing the package does to a process."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib.metadata import requires

import pytest

from tests.support import ROOT
from tests.support.third_party import Project

pytestmark = pytest.mark.slow

PACKAGES = ("gradellm_hf", "model_patches")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("gradellm_hf-*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """What the sdist holds, in a folder."""
    folder = tmp_path_factory.mktemp("sdist")
    _run([sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder], cwd=ROOT)
    (path,) = folder.glob("gradellm_hf-*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder / path.name.removesuffix(".tar.gz")


def test_the_wheel_holds_every_file_of_both_packages_and_nothing_else(wheel):
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert "gradellm_hf/py.typed" in held


def test_the_sdist_holds_every_file_of_what_it_includes(unpacked):
    included = Project(ROOT).table["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    expected = {*_files(ROOT, included), ".gitignore", "PKG-INFO", "pyproject.toml"}
    assert set(_files(unpacked, ["."])) == expected
    assert {name for name in included if not (unpacked / name).exists()} == set()


def test_the_sdist_builds_the_site_from_its_own_files(unpacked, tmp_path):
    source = shutil.copytree(unpacked, tmp_path / "source")
    module = source / "gradellm_hf" / "generation.py"
    module.write_text(module.read_text().replace("Generates as `model.generate` does", "Generates from the sdist"))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    _run(command, cwd=source, NO_MKDOCS_2_WARNING="1", PYTHONPATH="")
    assert "Generates from the sdist" in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")


def test_the_sdist_builds_the_same_wheel(wheel, unpacked, tmp_path):
    _run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path], cwd=unpacked)
    with zipfile.ZipFile(tmp_path / wheel.name) as built, zipfile.ZipFile(wheel) as expected:
        assert {file.filename: file.CRC for file in built.infolist()} == {
            file.filename: file.CRC for file in expected.infolist()
        }


def test_the_wheel_carries_its_license_and_asks_for_what_is_declared(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata_name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        (license_name,) = (name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        metadata = Parser().parsestr(archive.read(metadata_name).decode())
        assert "Apache License" in archive.read(license_name).decode()
    core = [requirement for requirement in metadata.get_all("Requires-Dist") if "extra ==" not in requirement]
    assert {requirement.split(">")[0].split("<")[0] for requirement in core} == set(Project(ROOT).dependencies)


def test_it_needs_no_package_that_torch_transformers_and_accelerate_do_not_need():
    main = {"torch", "transformers", "accelerate"}
    brought = {name for package in main for name in map(_name, requires(package)) if name}
    assert set(Project(ROOT).dependencies) <= main | brought


def test_the_installed_wheel_explains_a_generation_away_from_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    _pip("install", "--no-deps", "--target", site, wheel)
    output = _python(
        """
        import torch, transformers, gradellm_hf, model_patches
        config = transformers.LlamaConfig(vocab_size=31, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                                          num_attention_heads=3, num_key_value_heads=1, eos_token_id=None, pad_token_id=0)
        model = transformers.LlamaForCausalLM(config).eval()
        out = gradellm_hf.explain_generate(model, torch.tensor([[3, 1, 4, 1, 5]]), max_new_tokens=4, do_sample=False)
        print(gradellm_hf.__file__, model_patches.__file__, (out.attributions.sum(-1) > 0).sum().item(), sep="\\n")
        """,
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )
    *files, explained = output.split("\n")
    assert files == [str(site / package / "__init__.py") for package in PACKAGES]
    assert explained == "4"


def test_importing_the_package_imports_no_plotting_table_or_terminal_library_and_no_model_code():
    imported = _python(
        """
        import sys, torch, transformers
        before = set(sys.modules)
        from gradellm_hf import ExplainGenerateOutput, Explanation, GradELLM, GradELLMConfig, explain_generate, verify
        print(*sorted(set(sys.modules) - before), sep="\\n")
        """
    ).split("\n")
    assert "gradellm_hf.generation" in imported
    unwanted = ("matplotlib", "pandas", "rich", "IPython", "transformers.modeling_utils", "transformers.models")
    assert [name for name in imported if name.startswith(unwanted)] == []


def test_the_package_itself_imports_without_torch():
    imported = _python("import sys, gradellm_hf; print('torch' in sys.modules, hasattr(gradellm_hf, 'explain_generate'))")
    assert imported == "False True"


def test_importing_the_package_changes_nothing_in_torch_and_transformers():
    changed = _python(
        """
        import sys, torch, transformers
        import transformers.generation.utils, transformers.masking_utils, transformers.modeling_utils
        import transformers.models.llama.modeling_llama

        def snapshot():
            taken = {}
            for module_name, module in list(sys.modules.items()):
                if module_name.split(".")[0] not in ("torch", "transformers"):
                    continue
                for name, value in list(vars(module).items()):
                    taken[module_name, name] = value
                    members = vars(value).items() if isinstance(value, type) else ()
                    taken.update({(module_name, name, member): item for member, item in members})
            registry = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
            taken.update({("registry", name): registry[name] for name in registry.valid_keys()})
            return taken

        before = snapshot()
        import gradellm_hf
        for name in gradellm_hf.__all__:
            getattr(gradellm_hf, name)
        after = snapshot()
        own = ("__builtins__", "__warningregistry__", "__dict__", "_abc_impl")
        print(len(before) > 10_000)
        print([key for key in before if before[key] is not after.get(key) and key[-1] not in own])
        """
    )
    assert changed == "True\n[]"


def _name(requirement):
    """The package of a requirement that holds without extras; None for others."""
    return None if "extra ==" in requirement else re.match(r"[\w.-]+", requirement)[0]


def _files(folder, names):
    """The files with these names, and those in the folders with these names."""
    paths = (path for name in names for path in ((folder / name).rglob("*") if (folder / name).is_dir() else [folder / name]))
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file() and "__pycache__" not in path.parts]


def _python(code, cwd=ROOT, **environment):
    """What a fresh interpreter prints."""
    lines = code.strip("\n").split("\n")
    indent = len(lines[0]) - len(lines[0].lstrip())
    return _run([sys.executable, "-c", "\n".join(line[indent:] for line in lines)], cwd, **environment)


def _pip(*arguments):
    _run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments])


def _run(command, cwd=None, **environment):
    """What a command prints."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
