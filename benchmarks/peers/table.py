"""The table of `docs/comparison.md`, from the results of a run."""

from typing import Any

from .libraries import CELLS, PEERS


def table(results: dict[str, Any], kind: str = "") -> str:
    """A row for each library and method, a column for each length of text.

    Args:
        results: What a run wrote.
        kind: "cpu_" for seconds of the processor, "" for those of the clock.
    """
    cells = [cell for cell in CELLS if any(_name(cell) in rows for rows in results["peers"].values())]
    head = ["library", "what", *(f"P={prompt}, N={steps}" for prompt, steps in cells)]
    lines = [head, ["---"] * len(head)]
    for name, rows in results["peers"].items():
        peer = PEERS[name]
        lines.append([peer.library, peer.what, *(_cell(rows.get(_name(cell)), kind) for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions(results: dict[str, Any]) -> str:
    """One sentence with the versions of all."""
    found = {package for name in results["peers"] for package in (*PEERS[name].packages, *PEERS[name].alone)}
    return f"Versions: {', '.join(sorted(package.replace('==', ' ') for package in found if '==' in package))}."


def _name(cell: tuple[int, int]) -> str:
    return f"{cell[0]}x{cell[1]}"


def _cell(row: dict[str, Any] | None, kind: str) -> str:
    if row is None:
        return ""
    if "error" in row:
        return str(row["error"])
    ratio = row[f"{kind}seconds"] / row[f"generate_{kind}seconds"]
    written = f"{ratio:.2f}" if ratio < 1 else f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"
    return f"{written} ({row['more_mib']:.0f} MiB)"
