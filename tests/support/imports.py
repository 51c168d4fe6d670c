"""Who imports whom, read from the source: nothing is run, and imports in functions and for type checkers count too."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Import(NamedTuple):
    """`importer` imports `imported`, or the name `name` from it. Both are files; the name of a package is its `__init__`."""

    importer: str
    imported: str
    name: str | None
    line: int


def modules(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """The files of packages that lie in a folder, by dotted name."""
    found = {}
    for path in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: dict[str, Path]) -> list[Import]:
    """Every import of one of these files by another."""
    return [
        Import(importer, imported, name, line)
        for importer, path in files.items()
        for imported, name, line in _imports_of(importer, path, files)
        if imported != importer
    ]


def _imports_of(importer: str, path: Path, files: dict[str, Path]) -> Iterator[tuple[str, str | None, int]]:
    package = importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                for alias in node.names:
                    parts = alias.name.split(".")
                    known = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
                    if (imported := next((name for name in known if name in files), None)) is not None:
                        yield imported, None, node.lineno
            case ast.ImportFrom():
                start = package[: len(package) + 1 - node.level] if node.level else []
                base = ".".join([*start, *([node.module] if node.module else [])])
                for alias in node.names:
                    if f"{base}.{alias.name}" in files:
                        yield f"{base}.{alias.name}", None, node.lineno
                    elif base in files:
                        yield base, alias.name, node.lineno


def circles(arrows: set[tuple[str, str]]) -> list[list[str]]:
    """The sets of names that can all be reached from each other, each sorted."""
    reached = {a: {a} for arrow in arrows for a in arrow}
    for _ in reached:  # no way is longer
        for a, b in arrows:
            reached[a] |= reached[b]
    together = {frozenset(b for b in reached[a] if a in reached[b]) for a in reached}
    return sorted(sorted(names) for names in together if len(names) > 1)
