"""The strongest sources of each generated unit, as lines of text."""

from unicodedata import category, east_asian_width

from ..checks.arguments import whole_number
from ..text.readable import Readable

# Backgrounds of one hue from faint to strong (xterm's 256 colours), each with a foreground that stands out against it.
_SHADES = ((16, 195), (16, 153), (16, 117), (16, 75), (231, 25), (231, 18))
_AGAINST = ((16, 230), (16, 223), (16, 216), (16, 209), (231, 130), (231, 94))
_BOLD, _RESET = "\x1b[1m", "\x1b[0m"
_COMBINING = ("Mn", "Me")  # categories of marks that are drawn over the character before them


def render(explanation: Readable, *, top: int = 6, color: bool = False, include_special: bool = False) -> str:
    """One line per generated unit: the unit, then the earlier ones with the highest scores, highest first.

    No control character of the text is printed: line breaks, escape sequences and marks that reorder text are written as
    escapes.

    Args:
        explanation: What to show.
        top: How many sources to name. Sources with the score 0 are not named.
        color: Shade each source by its score, relative to the line's highest. For terminals with 256 colours. False: write the
            relative score behind it.
        include_special: Whether special tokens count as sources.

    Returns:
        Lines of text, without a line break at the end.

    Raises:
        InvalidInputError: `top` is no number of at least 0.

    Examples:
        >>> strongest = render(explanation, top=2).splitlines()[0]  # the strongest sources of the first generated unit
        >>> "1.00" in strongest
        True
    """
    top = whole_number("top", top, 0)
    border = explanation.prompt_length
    heads = [visible(token) for token in explanation.tokens[border:]]
    width = max(map(cell_width, heads), default=0)
    lines = []
    for step, head in enumerate(heads):
        sources = explanation.top(step, len(explanation.tokens), include_special=include_special)
        strongest = [source for source in sources if source.position < border + step][:top]
        highest = max((abs(source.score) for source in strongest), default=1.0)
        parts = [_part(visible(source.token), source.score / highest, color) for source in strongest]
        head = head + " " * (width - cell_width(head))
        lines.append(f"{_BOLD + head + _RESET if color else head}  {(' ' if color else '  ').join(parts)}".rstrip())
    return "\n".join(lines)


def visible(text: str) -> str:
    """The text without spaces around it. Characters that do not print (line breaks, control characters) become escapes."""
    text = text.strip(" ") or "\u2423"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell_width(text: str) -> int:
    """Columns that a text takes in a terminal: Chinese characters and emoji take two, combining marks none."""
    return sum(0 if category(c) in _COMBINING else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _part(token: str, strength: float, color: bool) -> str:
    if not color:
        return f"{token} {strength:.2f}"
    shades = _SHADES if strength > 0 else _AGAINST
    foreground, background = shades[min(int(abs(strength) * len(shades)), len(shades) - 1)]
    return f"\x1b[38;5;{foreground};48;5;{background}m {token} {_RESET}"
