"""Do the tests notice? Breaks one small thing at a time in a copy of the checkout, and runs the tests that should notice it.

    python -m scripts.mutate gradellm_hf/engines/*.py --limit 4                                 # 4 lines of each file
    python -m scripts.mutate gradellm_hf/checks/schema.py --line 31 --tests tests/checks        # one line, in every way

`--seed` draws the lines, and the break of each. Without `--tests`, the tests are those of `NOTICED_BY`, fast ones first, until
one fails. With `--widen`, what they do not notice is tried with the rest of the suite too (many minutes per break; without the
files of `SLOW`). Prints a table row by row.

If a break survives, either a test is missing, or it is no break (it may only undo a shortcut that saves time).
"""

import argparse
import ast
import copy
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "site", "*.egg-info")

_ENGINES = ["position_local", "explain_sequences", "self_check", "generation_repeated", "variants", "exactness"]
_GENERATION = ["caches", "as_generated", "generation_repeated", "row_ends", "drop_in", "multimodal", "streaming"]
_JOBS = ["job", "processes", "bad_input"]
#: By file of the package, or else by folder ("cli/"): the tests that should notice a break in it, fast ones first.
NOTICED_BY = {
    "adapters": ["shadowed_adapters", "adapters", "adapter_plugin"],
    "architecture/": ["wrappers", "state_restored", "attention_implementations", *_ENGINES],
    "attention_output": ["paper_preset", "variants", "adapters", "family_adapters"],
    "blocks": ["blocks", "position_local", "formula", *_ENGINES],
    "caches": _GENERATION,
    "checks/": ["arguments", "files", "bad_input", "attack"],
    "cli/": ["checks", "command_line"],
    "dataset/": [*_JOBS, "files", "checks", "command_line"],
    "explained": ["explain_sequences", "self_check", "drop_in", "caches", "multimodal", "dtypes", "remote_code"],
    "facts": ["explain_sequences", "bad_input", "paper_preset", "variants", "tensor_parallel"],
    "files": ["files", "explanation", "job"],
    "formula": ["formula", *_ENGINES],
    "heatmap_sums": ["heatmap_sums", "explain_sequences", "bad_input", "variants", "exactness", "memory"],
    "identity": ["self_check", "as_generated", "leaks"],
    "interception": [*_ENGINES, "state_restored", "remote_code", "threads"],
    "jobs/": [*_JOBS, "files", "same_weights", "runner"],
    "layout": ["explain_sequences", "self_check", "wrappers", "remote_code", "leaks"],
    "loop": [*_ENGINES, "as_generated", "memory", "leaks", "state_restored"],
    "model_patches/": ["adapters", "adapter_plugin", "family_adapters", "paper_preset", "exactness"],
    "offloading": ["state_restored", "leaks", "devices"],
    "position_local": ["position_local", "formula", *_ENGINES, "remote_code", "threads"],
    "projection_watch": ["self_check", "attention_implementations", "adapters", "family_adapters", "variants", "remote_code"],
    "recording": ["bad_input", *_GENERATION, "wrappers"],
    "replay": [*_ENGINES, "memory"],
    "row_ends": ["row_ends", "as_generated", "positions", "drop_in", "streaming"],
    "self_check": ["self_check", "as_generated", "unusual_logits", "wrappers", "remote_code", "quantized"],
    "sequences/": ["bad_input", "explain_sequences", "positions", *_GENERATION],
    "stepwise": ["self_check", "as_generated", *_ENGINES, "remote_code"],
    "streaming/": ["blockwise", "streaming"],
    "targets": ["targets", *_ENGINES],
    "written_logits": ["as_generated", "unusual_logits", *_GENERATION],
}
#: Left out of the rest of the suite: each takes minutes, or starts a process per test.
SLOW = {
    *("architectures", "custom_generate", "docs", "examples", "killed", "lxt", "packaging", "planted_answers"),
    *("positive_control", "report_browser", "same_weights", "tensor_parallel"),
}

_OPPOSITE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}


@dataclass(frozen=True)
class Break:
    """One change of a file: `old` on line `line` becomes `new`, and the file `source`."""

    path: Path
    line: int
    old: str
    new: str
    source: str


def breaks_of(path: Path) -> list[Break]:
    """Every break of a file that is tried, in the order of its text."""
    text = path.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node, new in _changes(ast.parse(text)):
        begin, end = (starts[x - 1] + y for x, y in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)))
        source = (text[:begin] + new.encode() + text[end:]).decode()
        found.append(Break(path, node.lineno, text[begin:end].decode(), new, source))
        compile(source, path, "exec")
    return sorted(found, key=lambda x: (x.line, x.old, x.new))


def _changes(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Nodes of a tree, and what to write in their place. Not in messages, annotations and options of a command line."""
    for node in _code(tree):
        match node:
            case ast.Compare(ops=[op]) | ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op) in _OPPOSITE:
                opposite = _OPPOSITE[type(op)]()
                changed = copy.copy(node)
                if isinstance(node, ast.Compare):
                    changed.ops = [opposite]
                else:
                    changed.op = opposite
                yield node, f"({ast.unparse(changed)})"
            case ast.UnaryOp(op=ast.Not()):
                yield node, f"bool({ast.unparse(node.operand)})"
            case ast.Constant(value=bool()):
                yield node, str(not node.value)
            case ast.Constant(value=int() | float()):
                yield node, repr(node.value + 1)
            case ast.Slice(upper=ast.expr() as upper):
                yield upper, f"({ast.unparse(upper)}) - 1"
            case ast.IfExp():
                yield node, f"({ast.unparse(node.body)})"
                yield node, f"({ast.unparse(node.orelse)})"
            case ast.Call(func=ast.Name("max" | "min"), args=[_, _, *_]):
                for argument in node.args:
                    yield node, f"({ast.unparse(argument)})"
            case ast.If(body=[*_, ast.Return() as early]):
                yield early, "pass"
            case ast.Call(keywords=[_, *_]):
                for i in range(len(node.keywords)):
                    changed = copy.copy(node)
                    changed.keywords = node.keywords[:i] + node.keywords[i + 1 :]
                    yield node, ast.unparse(changed)
            case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
                yield node, "pass"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield node, "pass"


def _code(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.Raise) or name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_left_alone(child):
                yield from _code(child)


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.If(test=ast.Name("TYPE_CHECKING")) | ast.Expr(value=ast.Call(func=ast.Attribute(attr="add_argument"))):
            return True
        case _:
            return isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom)


def chosen(path: Path, limit: int | None, seed: int) -> list[Break]:
    """Breaks of as many different lines of a file, at random."""
    by_line: dict[int, list[Break]] = {}
    for change in breaks_of(path):
        by_line.setdefault(change.line, []).append(change)
    generator = random.Random(f"{seed} {path.relative_to(ROOT)}")
    lines = generator.sample(list(by_line), min(len(by_line), limit or len(by_line)))
    return [generator.choice(by_line[line]) for line in sorted(lines)]


def first_failure(copied: Path, tests: list[str], time_limit: float) -> str | None:
    """The first of the tests that fails, or that the time ran out; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copied), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copied, env=environment, capture_output=True, text=True, timeout=time_limit)
    except subprocess.TimeoutExpired:
        return f"the time limit of {time_limit:.0f} s"
    if done.returncode == 0:
        return None
    failure = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return failure.group(1) if failure else f"pytest's exit status {done.returncode}"


def tests_of(path: Path) -> list[str]:
    """The tests of a file: those of `NOTICED_BY`, or of the same name, or of the same folder; else those of the engines."""
    folder = path.parent.name
    for names in (NOTICED_BY.get(path.stem), [path.stem], NOTICED_BY.get(f"{folder}/")):
        if names and (tests := [test for name in names for test in _test_files(name)]):
            return tests
    return sorted(_relative(ROOT.glob(f"tests/{folder}/test_*.py"))) or [
        test for name in _ENGINES for test in _test_files(name)
    ]


def rest_of_suite(tests: list[str]) -> list[str]:
    """The other test files, but for the slowest."""
    left_out = {*tests, *(test for name in SLOW for test in _test_files(name))}
    return [test for test in _test_files("*") if test not in left_out]


def _test_files(name: str) -> list[str]:
    """The files `test_{name}.py`, in whichever folder of the tests."""
    return sorted(_relative(ROOT.glob(f"tests/**/test_{name}.py")))


def _relative(paths: Iterable[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tests", nargs="+", help="instead of those of NOTICED_BY")
    parser.add_argument("--widen", action="store_true", help="run the rest of the suite for what these do not notice")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--limit", type=int, help="how many lines of each file to break; all of them unless given")
    which.add_argument("--line", type=int, nargs="+", help="these lines only, in every way that is known here")
    parser.add_argument("--seed", type=int, default=0, help="which lines")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds that the tests may take")
    options = parser.parse_args()
    paths = [path.resolve() for path in options.files]
    if options.line:
        changes = [change for path in paths for change in breaks_of(path) if change.line in options.line]
    else:
        changes = [change for path in paths for change in chosen(path, options.limit, options.seed)]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copied = Path(shutil.copytree(ROOT, Path(folder) / "copy", ignore=_LEFT_OUT))
        tests = {path: options.tests or tests_of(path.relative_to(ROOT)) for path in paths}
        everything = list(dict.fromkeys(test for files in tests.values() for test in files))
        if failing := first_failure(copied, everything, 10 * options.time_limit):
            sys.exit(f"Without any break, {failing} fails.")
        print("| line | break | noticed by |\n|---|---|---|", flush=True)
        for change in changes:
            relative = change.path.relative_to(ROOT)
            (copied / relative).write_text(change.source)
            failure = first_failure(copied, tests[change.path], options.time_limit)
            if failure is None and options.widen:
                failure = first_failure(copied, rest_of_suite(tests[change.path]), 10 * options.time_limit)
            shutil.copyfile(change.path, copied / relative)
            survivors += failure is None
            shown = " -> ".join(_on_one_line(text) for text in (change.old, change.new))
            print(f"| {relative}:{change.line} | `{shown}` | {failure or '**survived**'} |", flush=True)
    print(f"\n{len(changes) - survivors} of {len(changes)} noticed.")
    return 0


def _on_one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
