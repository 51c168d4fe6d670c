"""Names of modules and paths of files lead somewhere, wherever they are written: in code, on pages, in configuration."""

import importlib
import re

from gradellm_hf.configuration import head_weights
from gradellm_hf.dataset import explanations, shards
from gradellm_hf.evaluation import runner
from gradellm_hf.results import files
from model_patches.registry import ENTRY_POINT_GROUP
from scripts.house import FLOORS
from tests.support import ROOT

_FOLDERS = ("gradellm_hf", "model_patches", "tests", "scripts", "benchmarks", "docs", "examples", "custom_generate")
_NAME = re.compile(r"(?<![\w./-])(?:gradellm_hf|model_patches)(?:\.\w+)+")
_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(_FOLDERS)})/[\w./-]*\w(?![\w*{{])")
#: Looks like modules in quotation marks: the kinds of files, and the group of entry points.
_FORMATS = (head_weights.FORMAT, files.FORMAT, explanations.FORMAT, shards.FORMAT, runner.FORMAT)
_NO_MODULES = (*(f'"{name}"' for name in (*_FORMATS, ENTRY_POINT_GROUP)), f"`{ENTRY_POINT_GROUP}`")
#: Make up packages to try their checks on.
_MADE_UP = [ROOT / "tests" / "project" / name for name in ("test_layers.py", "test_dependencies.py")]


def written(pattern):
    """What of the project's text has such a form, and in which files: {found: files}."""
    found = {}
    suffixes = {".py", ".md", ".toml", ".yml", ".yaml", ".ipynb", ".cff"}
    inside = (path for folder in (*_FOLDERS, ".github") for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    beside = (
        path for path in ROOT.iterdir() if path.suffix in suffixes or path.name in ("Makefile", ".pre-commit-config.yaml")
    )
    for path in [*inside, *beside, ROOT / ".ci" / "run"]:
        if path.is_file() and path not in _MADE_UP:  # an unpacked sdist has not all of them
            text = path.read_text(encoding="utf-8")
            for quoted in _NO_MODULES:
                text = text.replace(quoted, "")
            for match in pattern.finditer(text):
                found.setdefault(match[0], set()).add(str(path.relative_to(ROOT)))
    return found


def leads_somewhere(name):
    """Whether a dotted name is a module's or an attribute's."""
    module, _, attributes = name, "", []
    while module:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, attribute = module.rpartition(".")
            attributes.insert(0, attribute)
            continue
        for attribute in attributes:
            if not hasattr(found, attribute) and attribute not in getattr(found, "__annotations__", ()):
                return False
            found = getattr(found, attribute, None)
        return True
    return False


def test_every_module_that_is_named_is_there():
    names = written(_NAME)
    assert len(names) > 100
    assert {name: files for name, files in names.items() if not leads_somewhere(name)} == {}


def test_every_file_that_is_named_is_there():
    paths = written(_PATH)
    assert len(paths) > 20
    assert {path: files for path, files in paths.items() if not (ROOT / path).exists()} == {}


def test_every_room_that_the_page_on_the_design_names_is_there():
    rooms = "|".join(room for rooms in FLOORS for room in rooms)
    names = re.findall(rf"`((?:{rooms})\.[\w.]+)`", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    assert len(names) > 20
    assert [name for name in names if not leads_somewhere(f"gradellm_hf.{name}")] == []
