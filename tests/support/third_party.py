"""What code imports of other packages, and what `pyproject.toml` declares: both read from the source, nothing is run."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

#: The name of the package that a module is in, if it has another one.
PACKAGE_OF = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "PyYAML"}
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<extras>[^]]*)\])?(?P<versions>[^;]*)")


class Use(NamedTuple):
    """A place where code needs a package.

    Attributes:
        package: Its name.
        line: Where.
        how: "always" if importing the module imports it, "when called" if that is in a function, "guarded" if a missing package
            is reported by `needed_for`.
    """

    package: str
    line: int
    how: str


def uses(path: Path, own: set[str]) -> list[Use]:
    """Where a file needs packages, but for the standard library, `own` modules, and what is imported for type checkers."""
    return sorted(
        set(_uses(ast.parse(path.read_text(encoding="utf-8")), "always", own | {*sys.stdlib_module_names, "tomllib"}))
    )


def _uses(node: ast.AST, how: str, known: set[str]) -> Iterator[Use]:
    guarded = ()
    match node:
        case ast.Import():
            modules = [alias.name for alias in node.names]
        case ast.ImportFrom(level=0, module=str(module)):
            modules = [module]
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            how, modules = "when called", []
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            for child in node.orelse:
                yield from _uses(child, how, known)
            return
        case ast.With():
            modules = []
            guarded = [item.context_expr for item in node.items if _is_guard(item.context_expr)]
        case _:
            modules = []
    for module in modules:
        top = module.split(".")[0]
        if top not in known:
            yield Use(PACKAGE_OF.get(top, top.replace("_", "-")), getattr(node, "lineno", 0), how)
    for call in guarded:
        how = "guarded"
        yield Use(ast.literal_eval(call.args[1]), call.lineno, how)
    for child in ast.iter_child_nodes(node):
        yield from _uses(child, how, known)


def _is_guard(call: ast.expr) -> bool:
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "needed_for"


class Project:
    """The `pyproject.toml` in a folder."""

    def __init__(self, root: Path):
        self.table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        project = self.table["project"]
        self.name: str = project["name"]
        self.extras: dict[str, list[str]] = project.get("optional-dependencies", {})
        #: What everybody gets, by name: the versions.
        self.dependencies: dict[str, str] = dict(self._named(project["dependencies"]))

    def extra(self, name: str) -> dict[str, str]:
        """The packages of an extra, and of those that it takes in: the versions by name."""
        return dict(self._named(self.extras[name]))

    def _named(self, requirements: list[str]) -> Iterator[tuple[str, str]]:
        for requirement in requirements:
            match = _REQUIREMENT.match(requirement)
            assert match is not None, requirement
            if match["name"] != self.name:
                yield match["name"], match["versions"].strip()
                continue
            for extra in match["extras"].split(","):
                yield from self._named(self.extras[extra.strip()])
