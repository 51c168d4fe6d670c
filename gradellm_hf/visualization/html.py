"""An explanation as a web page: one file that needs no network and no library."""

import base64
import hashlib
import json
import zlib
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import torch
from torch import Tensor

from ..checks.arguments import string
from ..text.readable import Level, Readable, earlier_positions

_LEVELS: tuple[Level, ...] = ("token", "word", "sentence")
#: Levels of quantised scores. Of the heatmap: the most that a signed byte holds. Of single layers, chosen by hand: few, because
#: few levels compress well and there are many layers.
_FINE, _COARSE = 127, 7
_DEFAULT_TITLE = "Grad-ELLM explanation"


def report(explanation: Readable, *, title: str | None = None) -> str:
    """A self-contained, interactive page, ASCII only.

    Point at a generated token, or move the focus to it: the text before it is shaded by contribution. A click pins it. A click
    on a prompt token shows the generated tokens to which it contributed. A range of generated tokens shows the sum of their
    scores. Units, shading, layers (if recorded) and special tokens are chosen on the page. The text of the explanation is
    data on the page, never markup. The page's content security policy lets nothing else run, and nothing load.

    Scores are quantised for display (see `_packed`). The exact ones are in the explanation.

    Args:
        explanation: What to show.
        title: Of the page.

    Returns:
        HTML.

    Raises:
        InvalidInputError: The title is no text.

    Examples:
        >>> page = report(explanation, title="Where is Rome?")
        >>> page.splitlines()[0]
        '<!DOCTYPE html>'
    """
    string("title", title, none="the usual one")
    return _page(explanation, _DEFAULT_TITLE if title is None else title, form="report")


def snippet(explanation: Readable) -> str:
    """The page of `report`, small and without single layers, in a sandboxed frame for the output of a notebook.

    Args:
        explanation: What to show.

    Returns:
        HTML: an `iframe`.

    Raises:
        InvalidInputError: The level of the explanation's units is unknown.

    Examples:
        >>> snippet(explanation)[:28]
        '<iframe sandbox="allow-scrip'
    """
    lines = sum(1 + len(line) // 80 for line in explanation.text.split("\n"))
    height = min(max(220 + 26 * lines, 420), 640)
    page = _page(explanation, _DEFAULT_TITLE, form="snippet")
    return (
        f'<iframe sandbox="allow-scripts" title="{_DEFAULT_TITLE}" width="100%" height="{height}" '
        f'style="border: 0; display: block" srcdoc="{escape(page)}"></iframe>'
    )


def _page(explanation: Readable, title: str, form: str) -> str:
    # Tokens that make up one character are shown as one unit.
    shown = explanation.aggregate("token") if explanation.level == "token" else explanation
    style, script = _resource("report.css"), _resource("scores.js") + _resource("report.js")
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    return Template(_resource("report.html")).substitute(
        form=form,
        title=_text(title),
        facts=_text(_facts(explanation)),
        policy=policy,
        style=style,
        script=script,
        data=json.dumps(_data(shown, with_layers=form == "report"), separators=(",", ":")).replace("<", "\\u003c"),
    )


def _data(explanation: Readable, *, with_layers: bool) -> dict[str, Any]:
    levels: list[dict[str, Any]] = [{"name": explanation.level, "sizes": None}]
    if explanation.level in _LEVELS:
        for level in _LEVELS[_LEVELS.index(explanation.level) + 1 :]:
            levels.append({"name": level, "sizes": [end - start for start, end in explanation.units(level)]})
    special = torch.tensor(explanation.special, dtype=torch.bool)
    layers = explanation.layer_attributions if with_layers else None
    by_layer = []
    if layers is not None:
        indices = range(len(layers)) if explanation.layers is None else explanation.layers
        by_layer = [{"name": str(index), **_packed(scores, special, _COARSE)} for index, scores in zip(indices, layers)]
    return {
        "tokens": explanation.tokens,
        "names": explanation.unit_names,
        "special": special.int().tolist(),
        "promptLength": explanation.prompt_length,
        "probabilities": [float(f"{p:.4g}") for p in explanation.token_probabilities.tolist()],
        "levels": levels,
        "signed": bool((explanation.attributions < 0).any()),
        "summed": _packed(explanation.attributions, special, _FINE),
        "layers": by_layer,
    }


def _packed(scores: Tensor, special: Tensor, levels: int) -> dict[str, Any]:
    """Scores `[N, S]` in about one byte each: the square root of each, relative to the largest of its step, in `levels` steps.

    The root keeps weak sources apart; the sign is kept. Special tokens are relative to the largest special token: they often
    hold most of the weight, and would leave the others no resolution. Only scores of positions before a step are kept, step
    after step, deflated, as base64.
    """
    num_steps, length = scores.shape
    before = earlier_positions(length - num_steps, num_steps, length)
    size = scores.abs().masked_fill(~before, 0)
    scale = torch.stack([size.masked_fill(of_other, 0).amax(-1) for of_other in (special, ~special)], dim=-1)
    relative = size / scale[:, special.long()].clamp_min(torch.finfo(size.dtype).tiny)
    quantised = (relative.sqrt() * levels).round() * scores.sign()
    packed = zlib.compress(quantised[before].to(torch.int8).numpy().tobytes())
    return {
        "scores": base64.b64encode(packed).decode(),
        "scale": [[float(f"{x:.4g}") for x in row] for row in scale.tolist()],
        "levels": levels,
    }


def _facts(explanation: Readable) -> str:
    num_steps = len(explanation.attributions)
    facts = [f"{explanation.prompt_length:,} prompt and {num_steps:,} generated {explanation.level}s"]
    if explanation.model_name:
        facts.insert(0, explanation.model_name)
    if explanation.layers:
        facts.append(f"{len(explanation.layers)} layer{'s' if len(explanation.layers) > 1 else ''}")
    return " \u00b7 ".join(facts)


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _text(text: str) -> str:
    """Markup for a text, in ASCII."""
    return escape(text).encode("ascii", "xmlcharrefreplace").decode()
