"""The strongest sources of each generated unit, as lines of text."""

from collections.abc import Collection, Mapping
from unicodedata import category, east_asian_width

import torch

from ..checks.arguments import whole_number
from ..text.readable import Readable, explained_rows
from ..text.shares import IGNORED, Kind, as_ignore, checked_ignore, counted_scores, ignored_positions, left_out, shares

# Backgrounds of one hue from faint to strong (xterm's 256 colours), each with a foreground that stands out against it.
_SHADES = ((16, 195), (16, 153), (16, 117), (16, 75), (231, 25), (231, 18))
_AGAINST = ((16, 230), (16, 223), (16, 216), (16, 209), (231, 130), (231, 94))
_BOLD, _RESET = "\x1b[1m", "\x1b[0m"
#: What has no share, by its name in `ignored`.
_KINDS = {
    "special": "special tokens",
    "template": "template",
    "sink": "first position",
    "own": "own text",
    "content": "other text",
    "weak": "weak scores",
    "rest": "not kept",
}
_COMBINING = ("Mn", "Me")  # categories of marks that are drawn over the character before them


def render(
    explanation: Readable,
    *,
    top: int = 6,
    color: bool = False,
    ignore: Collection[Kind] = IGNORED,
    include_special: bool | None = None,
) -> str:
    """One line per explained unit: the unit, then its strongest sources with their shares. The last line: what is not counted.

    A share is a score over the sum of the scores of all candidate sources, as in `Explanation.sources`. No control character of
    the text is printed: line breaks, escape sequences and marks that reorder text are written as escapes.

    Args:
        explanation: What to show.
        top: How many sources to name. Sources with the share 0 are not named.
        color: Shade each source by its score, relative to the line's highest. For terminals with 256 colours. False: write the
            share behind it.
        ignore: What is no source; see `Explanation.sources`. Ignored special tokens get no line, either.
        include_special: The old form of `ignore=()`, for one more release; False: of `ignore=["special"]`.

    Returns:
        Lines of text, without a line break at the end.

    Raises:
        InvalidInputError: `top` is no number of at least 0, or `ignore` holds something else.

    Examples:
        >>> lines = render(explanation, top=2).splitlines()  # the strongest sources of each generated unit, and the rest
        >>> len(lines), lines[0].count("%")
        (5, 2)
    """
    top = whole_number("top", top, 0)
    border, names = explanation.prompt_length, explanation.unit_names or [None] * len(explanation.tokens)
    texts = [visible(name or token) for name, token in zip(names, explanation.tokens)]
    left_aside = checked_ignore(as_ignore(include_special, ignore))
    candidates = ~ignored_positions(explanation, left_aside)
    known = [border + row for row in explained_rows(explanation)]
    written = [i for i in known if not (explanation.special[i] and "special" in left_aside)]
    width = max((cell_width(texts[i]) for i in written), default=0)
    own = torch.eye(len(explanation.tokens), dtype=torch.bool)[border:]  # a larger unit rests on itself, too
    scores = explanation.attributions.masked_fill(own, 0)
    counted = counted_scores(scores, candidates)
    lines = []
    for i, row in zip(written, shares(counted)[[i - border for i in written]]):
        head = texts[i]
        order = row.abs().argsort(descending=True, stable=True)[:top].tolist()
        highest = row.abs().max().item()
        parts = [_part(texts[source], row[source].item(), highest, color) for source in order if row[source] != 0]
        head = head + " " * (width - cell_width(head))
        lines.append(f"{_BOLD + head + _RESET if color else head}  {(' ' if color else '  ').join(parts)}".rstrip())
    missing = left_out(explanation, scores, candidates, counted)
    if (others := len(scores) - len(known)) > 0:
        lines.append(f"({others} of {len(scores)} generated {explanation.level}s are not explained)")
    foil = explanation.foil
    if foil is not None:
        lines.append(contrasted(foil))
    return "\n".join([*lines, *([f"({listed(missing)})"] if missing else [])])


def listed(missing: Mapping[str, float]) -> str:
    """What is not counted, in words: kinds and their shares of all scores."""
    return "not counted: " + ", ".join(f"{_KINDS[kind]} {percent(share)}" for kind, share in missing.items())


def contrasted(foil: str) -> str:
    """What a contrast is with, in words."""
    return f"(rather than {visible(foil)}, for which negative shares speak)"


def percent(share: float) -> str:
    """`0.5` as `50 %`."""
    return f"{100 * share:.0f} %"


def visible(text: str) -> str:
    """The text without spaces around it. Characters that do not print (line breaks, control characters) become escapes."""
    text = text.strip(" ") or "\u2423"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell_width(text: str) -> int:
    """Columns that a text takes in a terminal: Chinese characters and emoji take two, combining marks none."""
    return sum(0 if category(c) in _COMBINING else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _part(text: str, share: float, highest: float, color: bool) -> str:
    if not color:
        return f"{text} {percent(share)}"
    shades, strength = _SHADES if share > 0 else _AGAINST, abs(share) / highest
    foreground, background = shades[min(int(strength * len(shades)), len(shades) - 1)]
    return f"\x1b[38;5;{foreground};48;5;{background}m {text} {_RESET}"
