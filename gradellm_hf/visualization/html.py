"""An explanation as a web page: one file that needs no network and no library."""

import base64
import hashlib
import json
from collections.abc import Collection
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from ..checks.arguments import string, true_or_false
from ..errors import InvalidInputError
from ..text.readable import Readable
from ..text.shares import IGNORED, Kind
from ..text.units import Spans
from .page_data import Tested, page_data

_DEFAULT_TITLE = "Grad-ELLM explanation"
_SCRIPTS = ("scores.js", "picture.js", "text.js", "panel.js", "component.js", "events.js")


def report(
    explanation: Readable,
    *,
    title: str | None = None,
    spans: Spans | None = None,
    ignore: Collection[Kind] = IGNORED,
    removals: Tested | None = None,
    compare: Readable | None = None,
    opening: str | None = None,
    fragment: bool = False,
) -> str:
    """A self-contained, interactive page, ASCII only.

    It opens on what the whole answer rests on, with the answer and its strongest sources beside the prompt. Point at a part
    of the answer to see what that rests on; a click keeps it. A click on the prompt shows what it fed. Units, layers (if
    recorded) and what counts as a source are chosen on the page. Images of the prompt are shown, made small, with a colour over
    what the selection rests on in them: scores of at least a fifth of the largest in all images. The text of the explanation is
    data on the page, never markup.
    The page's content security policy lets nothing else run, and nothing load.

    The shares are those of `Explanation.sources`, to within one percentage point (signed ones, which cancel, three): scores
    that count are rounded to 0.4 % of the largest of their row (of single layers: to 3.3 %), and which ones count is not
    changed by that. Of the others the page knows whether they are weak or as good as nothing (below 1 %; 5 %). The exact scores
    are in the explanation.

    Args:
        explanation: What to show.
        title: Of the page.
        spans: Documents, or other named parts of the prompt, as for `Explanation.sources`: they become units of the page.
        ignore: What is no source when the page opens; see `Explanation.sources`.
        removals: What `GradELLM.removal_test` returned: losses that were measured stand beside the shares.
        compare: A second explanation, to stand beside the first: of another model or prompt, or with a foil.
        opening: The units that the page opens with: `"token"`, `"word"`, `"sentence"`, `"message"`, or `"span"`, which are the
            documents. None: words, and sentences of a long text.
        fragment: Leave out the page around it. The HTML is then an element with a script, for an app. It brings its own style,
            changes nothing else, and several may be on one page.

    Returns:
        HTML.

    Raises:
        InvalidInputError: The title is no text, a span is not in the prompt, ambiguous, or overlaps another, there are no such
            units to open with, or `ignore`, `removals`, `compare` or `fragment` is something else.

    Examples:
        >>> page = report(explanation, title="Where is Rome?", spans={"place": " Italy"})
        >>> page.splitlines()[0]
        '<!DOCTYPE html>'
        >>> report(explanation, fragment=True)[:17]
        '<gradellm-report>'
    """
    string("title", title, none="the usual one")
    if compare is not None and not hasattr(compare, "attributions"):
        raise InvalidInputError(f"`compare` must be a second explanation, or None, got {type(compare).__name__}.")
    shown = [(explanation, removals)] if compare is None else [(explanation, removals), (compare, None)]
    headings = [_DEFAULT_TITLE if title is None else title] if compare is None else _headings(explanation, compare)
    data = [
        page_data(each, heading=heading, facts=_facts(each), spans=spans, ignore=ignore, removals=tested, opening=opening)
        for (each, tested), heading in zip(shown, headings)
    ]
    elements = [_element(_json(each)) for each in data]
    if true_or_false("fragment", fragment):
        return "\n".join([*elements, f"<script>{report_script()}</script>"])
    return _page(elements, _DEFAULT_TITLE if title is None else title, form="single" if compare is None else "pair")


def report_data(explanation: Readable, *, title: str | None = None, **options: Any) -> str:
    """What is in a `<gradellm-report>`, for an app that makes the elements itself: the JSON text of its inner script.

    Args:
        explanation: What to show.
        title: Above it. None: there is no heading.
        **options: `spans`, `ignore`, `removals` and `opening`, as for `report`.

    Returns:
        JSON, in ASCII and without any `<`.

    Raises:
        InvalidInputError: As `report`.

    Examples:
        >>> import json
        >>> json.loads(report_data(explanation, title="Where is Rome?"))["heading"]
        'Where is Rome?'
    """
    heading = string("title", title, none="no heading") or ""
    return _json(page_data(explanation, heading=heading, facts=_facts(explanation), **options))


def report_script() -> str:
    """What makes a report of each `<gradellm-report>` of a page, those that are added later too.

    Returns:
        JavaScript without `</script>`. It may stand on a page more than once.

    Examples:
        >>> report_script().splitlines()[0]
        '"use strict";'
    """
    parts = {"STYLE": _resource("component.css"), "MARKUP": _resource("component.html")}
    constants = [f"const {name} = {json.dumps(text)};\n".replace("<", "\\u003c") for name, text in parts.items()]
    body = "".join([*constants, *map(_resource, _SCRIPTS)])
    return f'"use strict";\nif (!customElements.get("gradellm-report")) {{\n{body}}}\n'


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
    page = _page([_element(_json(page_data(explanation, with_layers=False)))], _DEFAULT_TITLE, form="snippet")
    return (
        f'<iframe sandbox="allow-scripts" title="{_DEFAULT_TITLE}" width="100%" height="{height}" '
        f'style="border: 0; display: block" srcdoc="{escape(page)}"></iframe>'
    )


def _page(elements: list[str], title: str, form: str) -> str:
    style, script = _resource("page.css"), report_script()
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return Template(_resource("page.html")).substitute(
        form=form,
        title=_text(title),
        heading=f'<h1 dir="auto">{_text(title)}</h1>\n' if form == "pair" else "",
        policy=policy,
        style=style,
        script=script,
        reports="\n".join(elements),
    )


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _element(content: str) -> str:
    return f'<gradellm-report><script type="application/json">{content}</script></gradellm-report>'


def _headings(first: Readable, second: Readable) -> list[str]:
    """What tells the two apart."""
    models = [explanation.model_name for explanation in (first, second)]
    if all(models) and models[0] != models[1]:
        return [str(model) for model in models]
    if first.foil != second.foil:
        return ["As written" if each.foil is None else f"Why not \u201c{each.foil.strip()}\u201d?" for each in (first, second)]
    return ["First", "Second"]


def _facts(explanation: Readable) -> str:
    num_steps = len(explanation.attributions)
    facts = [f"{explanation.prompt_length:,} prompt and {num_steps:,} generated {explanation.level}s"]
    if explanation.model_name:
        facts.insert(0, explanation.model_name)
    if explanation.layers:
        facts.append(f"{len(explanation.layers)} layer{'s' if len(explanation.layers) > 1 else ''}")
    if explanation.rest is not None:
        facts.append("only the strongest scores were kept")
    return " \u00b7 ".join(facts)


def _resource(name: str) -> str:
    return (files(__package__) / "web" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _text(text: str) -> str:
    """Markup for a text, in ASCII."""
    return escape(text).encode("ascii", "xmlcharrefreplace").decode()
