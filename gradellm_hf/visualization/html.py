"""A heatmap page: one file that needs nothing else, neither network nor library."""

import json
from collections.abc import Collection, Sequence
from html import escape

from torch import Tensor


def heatmap_page(
    tokens: Sequence[str],
    attributions: Tensor,
    prompt_length: int,
    *,
    token_probabilities: Sequence[float] | None = None,
    leave_out: Collection[int] = (),
    title: str = "Grad-ELLM explanation",
) -> str:
    """An HTML page with the text; pointing at, or moving the focus to, a generated token shades the tokens it rests on.

    Args:
        tokens: Text of each token, `S` of them. Escaped here.
        attributions: `a[n, i]`, `[N, S]`.
        prompt_length: `P`.
        token_probabilities: Probability of each generated token, `N` of them.
        leave_out: Positions that are shown but neither shaded nor counted in the scale (special tokens, say).
        title: Of the page.
    """
    steps = []
    for step, row in enumerate(attributions.float().tolist()):
        scores = {i: score for i, score in enumerate(row[: prompt_length + step]) if score > 0 and i not in leave_out}
        highest = max(scores.values(), default=1.0)
        steps.append({i: round(score / highest, 3) for i, score in scores.items()})
    spans = []
    for i, token in enumerate(tokens):
        text = escape(token).replace("\n", "⏎\n")
        if i < prompt_length:
            spans.append(f'<span class="{"special" if i in leave_out else "token"}">{text}</span>')
        else:
            probability = (
                "" if token_probabilities is None else f' title="probability {token_probabilities[i - prompt_length]:.3f}"'
            )
            spans.append(
                f'<span class="{"special" if i in leave_out else "token"} new" tabindex="0"{probability}>{text}</span>'
            )
    data = json.dumps(steps).replace("<", "\\u003c")
    return _PAGE.format(title=escape(title), style=_STYLE, text="".join(spans), data=data, script=_SCRIPT)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
<h1>{title}</h1>
<p>Point at a generated token (underlined), or reach it with Tab or the arrow keys: the tokens before it are shaded by how
much they contributed to it. Grey tokens are special ones, left out.</p>
<p class="scale" aria-hidden="true">none <span></span> the highest of this step</p>
<pre>{text}</pre>
<p id="status" role="status"></p>
<script type="application/json" id="steps">{data}</script>
<script>{script}</script>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1a1a1a; --faint: #6b6b6b; --heat: #5aa9f0; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --ink: #f0f0f0; --faint: #9a9a9a; --heat: #1f62b5; } }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.6 system-ui, sans-serif;
  background: var(--page); color: var(--ink); }
h1 { font-size: 1.3rem; }
pre { font: inherit; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; }
pre span { border-radius: 3px; padding: 2px 0; }
.token { background: color-mix(in srgb, var(--heat) calc(var(--score, 0) * 100%), transparent); }
.special { color: var(--faint); }
.new { text-decoration: underline; text-decoration-color: var(--faint); text-underline-offset: 5px; cursor: pointer; }
.chosen { outline: 2px solid var(--ink); }
.scale span { display: inline-block; width: 8rem; height: .8em; background: linear-gradient(90deg, transparent, var(--heat)); }
"""

_SCRIPT = """
const steps = JSON.parse(document.getElementById("steps").textContent);
const all = [...document.querySelectorAll("pre span")];
const generated = all.filter(e => e.classList.contains("new"));
const first = all.length - generated.length;
function choose(n) {
  all.forEach((e, i) => {
    e.style.setProperty("--score", steps[n][i] ?? 0);
    e.classList.toggle("chosen", i === first + n);
    if (!e.classList.contains("new")) e.title = (steps[n][i] ?? 0).toFixed(3);
  });
  const best = Object.entries(steps[n]).sort((a, b) => b[1] - a[1]).slice(0, 5);
  document.getElementById("status").textContent =
    "“" + generated[n].textContent.trim() + "” rests most on: " + best.map(([i]) => all[i].textContent.trim()).join(", ");
}
generated.forEach((e, n) => {
  e.addEventListener("mouseenter", () => choose(n));
  e.addEventListener("focus", () => choose(n));
  e.addEventListener("keydown", event => {
    const next = generated[n + ({ArrowRight: 1, ArrowLeft: -1}[event.key] ?? 0)];
    if (next && next !== e) { event.preventDefault(); next.focus(); }
  });
});
if (generated.length) choose(0);
"""
