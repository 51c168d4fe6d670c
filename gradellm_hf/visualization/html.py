"""An explanation as a web page: one file that needs nothing else, neither network nor library."""

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
_FINE, _COARSE = 127, 7  # steps of quantised scores: of the heatmap, and of each layer's
_DEFAULT_TITLE = "Grad-ELLM explanation"


def report(explanation: Readable, *, title: str | None = None) -> str:
    """A self-contained, interactive page, ASCII only.

    Pointing at a generated token, or moving the focus to it, shades the text before it by contribution; a click pins it.
    A click on a prompt token shows which generated tokens it fed, a range of generated tokens their sum. Units, shading,
    layers (where recorded) and special tokens are chosen on the page. All text of the explanation is data there, never
    markup, and the page's content security policy lets nothing else run and nothing load.

    Scores are quantised for display (see `_packed`); the exact ones are in the explanation.

    Args:
        explanation: What to show.
        title: Of the page.

    Raises:
        InvalidInputError: The title is no text.
    """
    string("title", title, none="the usual one")
    return _page(explanation, _DEFAULT_TITLE if title is None else title, form="report")


def snippet(explanation: Readable) -> str:
    """The page of `report`, small and without single layers, in a sandboxed frame for a notebook's output."""
    lines = sum(1 + len(line) // 80 for line in explanation.text.split("\n"))
    height = min(max(220 + 26 * lines, 420), 640)
    page = _page(explanation, _DEFAULT_TITLE, form="snippet")
    return (
        f'<iframe sandbox="allow-scripts" title="{_DEFAULT_TITLE}" width="100%" height="{height}" '
        f'style="border: 0; display: block" srcdoc="{escape(page)}"></iframe>'
    )


def _page(explanation: Readable, title: str, form: str) -> str:
    # Tokens that share a character are shown as one.
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
    """Scores `[N, S]` in about a byte each: the signed root of each, relative to the largest of its step, in `levels` steps.

    The root keeps weak sources apart. Special tokens have a largest of their own: they often hold most of the weight and
    would leave the others no resolution. Only what is before a step is kept, step after step, deflated, as base64.
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
