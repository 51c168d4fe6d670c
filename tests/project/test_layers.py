"""The house keeps its floors: imports point down, nothing runs in a circle, and every folder says what it is for.

A room is a folder or a module of `gradellm_hf`, or `model_patches`; `scripts/house.py` has the one table of them.
"""

import ast
import re

import pytest

from scripts.house import DRAWING, FLOORS, WAYS_IN, draw
from tests.support import ROOT
from tests.support.imports import circles, imports, modules

PACKAGES = ("gradellm_hf", "model_patches")
#: What may be had from a way in nevertheless: a constant, for which nothing is imported.
_CONSTANTS = {("gradellm_hf", "__version__")}
MOST_FLOORS, MOST_MODULES = 10, 9


def room(module):
    """The room that a file is in."""
    top, *inside = module.split(".")
    if top != "gradellm_hf" or not inside:
        return top
    return ".".join(inside) if ".".join(inside) in WAYS_IN else inside[0]


def faults(root, floors=FLOORS):
    """What is wrong with the house that stands in `root`, as sentences."""
    files = modules(root, PACKAGES)
    arrows = [arrow for arrow in imports(files) if (arrow.imported, arrow.name) not in _CONSTANTS]
    floor_of = {name: height for height, names in enumerate(reversed(floors)) for name in names}
    floor_of |= dict.fromkeys(WAYS_IN, len(floors))
    if len(floors) > MOST_FLOORS:
        yield f"{len(floors)} floors are more than {MOST_FLOORS}"
    for missing in sorted({room(module) for module in files} - set(floor_of)):
        yield f"{missing} is not in FLOORS"
    beside = [name for name in files if name.count(".") == 1 and files[name].stem not in ("__init__", "__main__")]
    beside = [name for name in beside if name.startswith("gradellm_hf.")]
    if len(beside) > MOST_MODULES:
        yield f"{len(beside)} modules stand beside the folders, more than {MOST_MODULES}"
    for importer, imported, _, line in arrows:
        first, second = room(importer), room(imported)
        if first != second and {first, second} <= set(floor_of) and floor_of[first] <= floor_of[second]:
            where = "above" if floor_of[first] < floor_of[second] else "next door"
            yield f"{importer}:{line} imports {imported}, from {where}"
        if second == "model_patches" != first and importer != "gradellm_hf.architecture.adapters":
            yield f"{importer}:{line} imports {imported}, which only architecture.adapters may"
    between = {(room(importer), room(imported)) for importer, imported, _, _ in arrows}
    for names in circles({arrow for arrow in between if arrow[0] != arrow[1]}):
        yield f"rooms in a circle: {', '.join(names)}"
    inside = {(importer, imported) for importer, imported, _, _ in arrows if room(importer) == room(imported)}
    for names in circles(inside):
        yield f"files in a circle: {', '.join(names)}"
    for name, path in files.items():
        if path.name == "__init__.py" and name != "gradellm_hf":
            yield from _untrue(name, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "", arrows, floor_of)


def _untrue(package, docstring, arrows, floor_of):
    """A folder says what it is for, and then `May import ...`: room after room, nothing, or everything below it."""
    if not (said := re.search(r"\w.*?\.\s.*?\bMay import (.*?)[.:](\s|$)", docstring, flags=re.DOTALL)):
        yield f"the docstring of {package} does not say what it is for and what it may import"
        return
    own, allowed = room(package), set(re.findall(r"`(\w+)`", said[1]))
    if said[1] == "everything below it":
        allowed = {name for name, floor in floor_of.items() if floor < floor_of.get(own, 0)}
    elif not allowed and not said[1].startswith("nothing"):
        yield f"the docstring of {package} names no room that it may import"
    unknown = sorted(allowed - set(floor_of) - {"gradellm_hf"})
    if unknown:
        yield f"the docstring of {package} names what is no room: {', '.join(unknown)}"
    used = {room(imported) for importer, imported, _, _ in arrows if room(importer) == own} - {own}
    if undeclared := sorted(used - allowed):
        yield f"{package} imports {', '.join(undeclared)}, which its docstring does not allow"


def test_imports_point_down_in_a_house_of_ten_floors_whose_rooms_say_what_they_are_for():
    found = list(faults(ROOT))
    assert not found, "\n".join(found)


def test_every_room_of_the_table_is_there():
    rooms = [name for names in FLOORS for name in names] + WAYS_IN
    assert len(rooms) == len(set(rooms))
    assert set(rooms) == {room(module) for module in modules(ROOT, PACKAGES)}


def test_the_drawing_shows_the_rooms_as_they_are():
    assert DRAWING.read_text(encoding="utf-8") == draw(), "Draw it anew: python -m scripts.house"


# The checks themselves, on a small house.

_HOUSE = {
    "gradellm_hf/__init__.py": '"""A house."""\n__version__ = "1"\n',
    "gradellm_hf/__main__.py": "from .cli import main\n",
    "gradellm_hf/cli/__init__.py": '"""Upstairs. May import everything below it."""\nfrom .command import main\n',
    "gradellm_hf/cli/command.py": "def main():\n    from ..engines.loop import run\n",
    "gradellm_hf/engines/__init__.py": '"""Runs. May import `errors` and `architecture` only."""\n',
    "gradellm_hf/engines/loop.py": "from .. import __version__\nfrom ..architecture.adapters import x\nfrom .step import y\n",
    "gradellm_hf/engines/step.py": "import gradellm_hf.errors\n",
    "gradellm_hf/metrics.py": "",
    "gradellm_hf/architecture/__init__.py": '"""Looks.\n\nMay import `model_patches` only.\n"""\n',
    "gradellm_hf/architecture/adapters.py": "from model_patches import x\n",
    "gradellm_hf/errors.py": "",
    "model_patches/__init__.py": '"""Names. May import nothing of `gradellm_hf`."""\nfrom .llama import x\n',
    "model_patches/llama.py": "x = 1\n",
}
_SMALL = [["cli"], ["engines", "metrics"], ["architecture"], ["errors", "model_patches"]]
_ABOVE = "gradellm_hf.errors:1 imports gradellm_hf.engines.loop, from above"
_CIRCLE = "rooms in a circle: engines, errors"
#: What is written into the house, and what is then wrong.
_FAULTS = {
    "up": ({"gradellm_hf/errors.py": "from .engines import loop\n"}, [_ABOVE, _CIRCLE]),
    "up, absolute": ({"gradellm_hf/errors.py": "import gradellm_hf.engines.loop\n"}, [_ABOVE, _CIRCLE]),
    "up, in a function": (
        {"gradellm_hf/errors.py": "def f():\n    from .engines.loop import run\n"},
        [_ABOVE.replace(":1", ":2"), _CIRCLE],
    ),
    "up, for the type checker": (
        {"gradellm_hf/errors.py": "if TYPE_CHECKING:\n    from .engines.loop import run\n"},
        [_ABOVE.replace(":1", ":2"), _CIRCLE],
    ),
    "to the way in": (
        {"gradellm_hf/errors.py": "from . import explain\n"},
        ["gradellm_hf.errors:1 imports gradellm_hf, from above"],
    ),
    "to the command line": (
        {"gradellm_hf/metrics.py": "from .cli import main\n"},
        ["gradellm_hf.metrics:1 imports gradellm_hf.cli, from above"],
    ),
    "next door": (
        {"gradellm_hf/metrics.py": "from .engines import step\n"},
        ["gradellm_hf.metrics:1 imports gradellm_hf.engines.step, from next door"],
    ),
    "out of the ground": (
        {"model_patches/llama.py": "from gradellm_hf.errors import x\n"},
        [
            "model_patches.llama:1 imports gradellm_hf.errors, from next door",
            "model_patches imports errors, which its docstring does not allow",
        ],
    ),
    "past the adapters": (
        {"gradellm_hf/metrics.py": "import model_patches.llama\n"},
        ["gradellm_hf.metrics:1 imports model_patches.llama, which only architecture.adapters may"],
    ),
    "files in a circle": (
        {
            "gradellm_hf/engines/step.py": "def f():\n    from .third import z\n",
            "gradellm_hf/engines/third.py": "import gradellm_hf.engines.loop\n",
        },
        ["files in a circle: gradellm_hf.engines.loop, gradellm_hf.engines.step, gradellm_hf.engines.third"],
    ),
    "a circle through the folder": (
        {"model_patches/llama.py": "from . import y\n"},
        ["files in a circle: model_patches, model_patches.llama"],
    ),
    "a new room": (
        {"gradellm_hf/app/__init__.py": '"""New. May import `errors`."""\n', "gradellm_hf/more.py": ""},
        ["app is not in FLOORS", "more is not in FLOORS"],
    ),
    "no docstring": (
        {"gradellm_hf/engines/__init__.py": ""},
        ["the docstring of gradellm_hf.engines does not say what it is for and what it may import"],
    ),
    "no purpose": (
        {"gradellm_hf/engines/__init__.py": '"""May import `errors` and `architecture`."""\n'},
        ["the docstring of gradellm_hf.engines does not say what it is for and what it may import"],
    ),
    "no rooms": (
        {"gradellm_hf/engines/__init__.py": '"""Runs. May import some."""\n'},
        [
            "the docstring of gradellm_hf.engines names no room that it may import",
            "gradellm_hf.engines imports architecture, errors, which its docstring does not allow",
        ],
    ),
    "an untrue docstring": (
        {"gradellm_hf/engines/__init__.py": '"""Runs. May import `errors` and `tools`."""\n'},
        [
            "the docstring of gradellm_hf.engines names what is no room: tools",
            "gradellm_hf.engines imports architecture, which its docstring does not allow",
        ],
    ),
}


def build(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_house_in_order_has_no_faults(tmp_path):
    assert list(faults(build(tmp_path, _HOUSE), _SMALL)) == []


@pytest.mark.parametrize(("files", "expected"), _FAULTS.values(), ids=_FAULTS)
def test_a_fault_is_found_and_named_with_its_place(files, expected, tmp_path):
    assert list(faults(build(tmp_path, _HOUSE | files), _SMALL)) == expected


def test_too_many_floors_and_too_many_modules_beside_the_folders_are_found(tmp_path):
    floors = [*_SMALL, *([f"extra_{n}"] for n in range(8))]
    files = {f"gradellm_hf/extra_{n}.py": "" for n in range(8)}
    assert list(faults(build(tmp_path, _HOUSE | files), floors)) == [
        "12 floors are more than 10",
        "10 modules stand beside the folders, more than 9",
    ]
