"""The floors of the package, and their drawing: `python -m scripts.house` writes docs/images/house.svg.

A room is a folder or a module of `gradellm_hf`, or `model_patches`. It imports from lower floors only. A new room gets a line
in `FLOORS`, and the drawing is made anew; `tests/project/test_layers.py` holds the code and the drawing to the table.
"""

from html import escape
from pathlib import Path

from gradellm_hf.checks.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
DRAWING = ROOT / "docs" / "images" / "house.svg"

#: From the top: the rooms of each floor, with what is in them.
FLOORS: list[dict[str, str]] = [
    {"cli": "the command line, one file per command"},
    {
        "app": "a chat in the browser",
        "dataset": "many prompts in one job",
        "evaluation": "methods, measured",
        "calibration": "learns weights of heads",
    },
    {
        "model": "GradELLM: text in, Explanation out",
        "pipeline": "Transformers' pipeline, explained",
        "methods": "what Grad-ELLM is compared with",
    },
    {
        "generation": "explain_generate, explain_sequences",
        "streaming": "explain_stream: token by token",
        "verification": "verify: one engine beside the other",
    },
    {
        "engines": "formula, replay, stepwise, checks",
        "metrics": "how faithful heatmaps are",
        "interchange": "tables, Parquet and Inseq's files",
    },
    {
        "sequences": "the token sequences to explain",
        "jobs": "prompts, manifest and processes",
        "results": "Explanation, output, their files",
    },
    {
        "architecture": "ModelFacts, layers, cache, devices",
        "images": "tokens of an image on its pixels",
        "visualization": "web page, figure, table, terminal",
    },
    {
        "configuration": "GradELLMConfig, HeadWeights",
        "text": "chats, tokens, words, sentences",
        "demo_model": "a small real model, from a package",
    },
    {"checks": "arguments, files, schemas and optional packages, each handled in one way everywhere"},
    {
        "errors": "every exception and warning",
        "model_patches": "the names of a model's parts, one small file per family",
    },
]
#: Stand before the house: they may import whatever they open, and nobody imports them.
WAYS_IN = ["gradellm_hf", "__main__", "dataset.__main__", "evaluate"]

_COLOURS = {
    "calling": (
        "cli",
        "app",
        "dataset",
        "evaluation",
        "calibration",
        "model",
        "pipeline",
        "generation",
        "streaming",
        "verification",
    ),
    "computing": ("methods", "metrics", "engines", "sequences", "architecture", "model_patches"),
    "showing": ("interchange", "results", "visualization", "images", "text"),
}
_LEGEND = {"calling": "what users call", "computing": "computing", "showing": "results and text", "shared": "shared by all"}

_WIDTH, _ROOF, _FLOOR, _GAP, _TOP = 960, 104, 56, 8, 20
_LEFT, _RIGHT = 56, 56
_STYLE = """
  svg { --page: #ffffff; --ink: #1d2433; --soft: #55607a; --wall: #f2f4f9; --line: #c5ccdc;
        --calling: #e3e8ff; --computing: #d7f1ea; --showing: #fdecc8; --shared: #e6e9ef; }
  @media (prefers-color-scheme: dark) {
    svg { --page: #161a24; --ink: #eef1f8; --soft: #a9b3c9; --wall: #1f2532; --line: #3b4458;
          --calling: #2c3768; --computing: #17483f; --showing: #54431a; --shared: #313949; }
  }
  text { font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
  .name { font: 600 16px ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
  .line { font-size: 13px; fill: var(--soft); }
  .title { font-size: 19px; font-weight: 700; }
  .page { fill: var(--page); } .wall { fill: var(--wall); stroke: var(--line); stroke-linejoin: round; }
  .calling { fill: var(--calling); } .computing { fill: var(--computing); }
  .showing { fill: var(--showing); } .shared { fill: var(--shared); }
  .arrow { stroke: var(--soft); fill: none; stroke-width: 1.5; }
"""


def draw() -> str:
    """The drawing, as SVG that follows the reader's light or dark colours and stands on a page of its own colour."""
    house, walls = _WIDTH - _LEFT - _RIGHT, len(FLOORS) * (_FLOOR + _GAP) + _GAP
    eaves = _TOP + _ROOF
    ground = eaves + walls
    height = ground + 84
    middle = _WIDTH / 2
    parts = [
        f'<rect class="page" width="{_WIDTH}" height="{height}" rx="10"/>',
        f'<path class="wall" d="M{_LEFT - 22} {eaves} L{middle} {_TOP} L{_WIDTH - _RIGHT + 22} {eaves} Z"/>',
        _text(middle, eaves - 48, "gradellm_hf", "title", "middle"),
        _text(middle, eaves - 26, "import gradellm_hf  ·  gradellm COMMAND  ·  python -m gradellm_hf", "line", "middle"),
        f'<rect class="wall" x="{_LEFT}" y="{eaves}" width="{house}" height="{walls}"/>',
    ]
    for number, rooms in enumerate(FLOORS):
        top = eaves + _GAP + number * (_FLOOR + _GAP)
        parts.append(_text(_LEFT - 14, top + _FLOOR / 2 + 4, str(len(FLOORS) - 1 - number), "line", "end"))
        width = (house - _GAP * (len(rooms) + 1)) / len(rooms)
        for place, (room, line) in enumerate(rooms.items()):
            parts += _room(room, line, _LEFT + _GAP + place * (width + _GAP), top, width)
    arrow, end = _WIDTH - _RIGHT + 20, ground - 16
    parts += [
        f'<path class="arrow" d="M{arrow} {eaves + 16} V{end} m-5 -9 l5 9 l5 -9"/>',
        f'<text class="line" text-anchor="middle" transform="translate({arrow + 19} {(eaves + ground) / 2}) rotate(90)">'
        "imports point down</text>",
        f'<path class="arrow" d="M{_LEFT - 34} {ground} H{_WIDTH - _RIGHT + 34}"/>',
        _text(middle, ground + 26, "PyTorch · Transformers · accelerate · safetensors", "line", "middle"),
        *_legend(ground + 46),
    ]
    body = "\n".join(f"  {part}" for part in parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="title">\n'
        f'  <title id="title">The floors of gradellm_hf: every room imports from lower floors only</title>\n'
        f"  <style>{_STYLE}  </style>\n{body}\n</svg>\n"
    )


def _room(room: str, line: str, left: float, top: float, width: float) -> list[str]:
    if len(line) > (width - 24) / 6.75:
        raise ValueError(f"The line of {room} is too long for its room: {line!r}.")
    kind = next((kind for kind, rooms in _COLOURS.items() if room in rooms), "shared")
    return [
        f'<rect class="{kind}" x="{left:g}" y="{top}" width="{width:g}" height="{_FLOOR}" rx="6"/>',
        _text(left + 12, top + 23, _shown(room), "name"),
        _text(left + 12, top + 43, line, "line"),
    ]


def _shown(room: str) -> str:
    is_folder = room == "model_patches" or (ROOT / "gradellm_hf" / room).is_dir()
    return f"{room}/" if is_folder else f"{room}.py"


def _legend(top: float) -> list[str]:
    parts, left = [], _LEFT + 104.0
    for kind, meaning in _LEGEND.items():
        parts.append(f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="22" height="14" rx="4"/>')
        parts.append(_text(left + 30, top + 11, meaning, "line"))
        left += 168
    return parts


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text, quote=False)}</text>'


if __name__ == "__main__":
    write_atomically(DRAWING, draw().encode())
    print(DRAWING.relative_to(ROOT))
