"""Options that say what becomes of an explanation, and doing it."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..explanation import Explanation


def add_result_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--html", type=Path, metavar="FILE", help="write an interactive page, one file that needs no network")
    group.add_argument("--png", type=Path, metavar="FILE", help="write a picture of the heatmap (also .pdf, .svg)")
    group.add_argument("--save", type=Path, metavar="FILE", help="write the scores as .safetensors, for `gradellm show`")
    group.add_argument(
        "--top", type=_positive, default=6, metavar="K", help="tokens to name for each one (default: %(default)s)"
    )
    group.add_argument("--json", action="store_true", help="print the scores as JSON instead of lines to read")


def write_results(explanation: "Explanation", options: argparse.Namespace) -> None:
    """Writes the files that were asked for, then prints the explanation."""
    if options.html is not None:
        explanation.to_html(options.html)
    if options.png is not None:
        explanation.plot(options.png)
    if options.save is not None:
        explanation.save(options.save)
    for path in (options.html, options.png, options.save):
        if path is not None:
            print(f"Wrote {path}", file=sys.stderr)
    if options.json:
        print(json.dumps(as_json(explanation, options.top), ensure_ascii=False))
    else:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(explanation.render(top=options.top, color=color))


def as_json(explanation: "Explanation", top: int) -> dict[str, Any]:
    """An explanation as JSON values; scores to six digits."""
    start = explanation.prompt_length
    steps = []
    for n, scores in enumerate(explanation.attributions.tolist()):
        strongest = [contribution._asdict() for contribution in explanation.top(n, top)]
        steps.append(
            {
                "position": start + n,
                "token": explanation.tokens[start + n],
                "probability": _rounded(explanation.token_probabilities[n].item()),
                "target_score": None if explanation.target_scores is None else _rounded(explanation.target_scores[n].item()),
                "strongest": [{**contribution, "score": _rounded(contribution["score"])} for contribution in strongest],
                "attributions": [_rounded(score) for score in scores[: start + n]],
            }
        )
    return {
        "model": explanation.model_name,
        "text": explanation.text,
        "prompt_length": start,
        "tokens": explanation.tokens,
        "token_ids": explanation.token_ids,
        "special": explanation.special,
        "layers": explanation.layers,
        "steps": steps,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)
