"""The strongest earlier tokens of each generated token, as lines of text."""

from collections.abc import Collection, Sequence

from torch import Tensor

# Backgrounds of one hue from faint to strong (xterm's 256 colours), each with a foreground that stands out against it.
_SHADES = ((16, 195), (16, 153), (16, 117), (16, 75), (231, 25), (231, 18))
_BOLD, _RESET = "\x1b[1m", "\x1b[0m"


def strongest_tokens(
    tokens: Sequence[str],
    attributions: Tensor,
    prompt_length: int,
    *,
    top: int = 6,
    leave_out: Collection[int] = (),
    color: bool = False,
) -> str:
    """One line a generated token: the token, then the earlier tokens with the highest scores, highest first.

    Args:
        tokens: Text of each token, `S` of them.
        attributions: `a[n, i]`, `[N, S]`.
        prompt_length: `P`.
        top: How many earlier tokens to name. Those that score 0 are not named.
        leave_out: Positions not to name.
        color: Shade each by its score relative to the line's highest, and write no numbers; otherwise write those numbers.
    """
    shown = [_visible(token) for token in tokens]
    width = max((len(token) for token in shown[prompt_length:]), default=0)
    lines = []
    for step, scores in enumerate(attributions.float().tolist()):
        candidates = (i for i in range(prompt_length + step) if scores[i] > 0 and i not in leave_out)
        strongest = sorted(candidates, key=lambda i: -scores[i])[:top]
        parts = [_shaded(shown[i], scores[i] / scores[strongest[0]], color) for i in strongest]
        token = shown[prompt_length + step].ljust(width)
        lines.append(f"{_BOLD + token + _RESET if color else token}  {(' ' if color else '  ').join(parts)}".rstrip())
    return "\n".join(lines)


def _shaded(token: str, strength: float, color: bool) -> str:
    if not color:
        return f"{token} {strength:.2f}"
    foreground, background = _SHADES[min(int(strength * len(_SHADES)), len(_SHADES) - 1)]
    return f"\x1b[38;5;{foreground};48;5;{background}m {token} {_RESET}"


def _visible(token: str) -> str:
    """Without the space before a word; what does not print (line breaks, control characters) as its escape."""
    text = token.strip(" ") or "␣"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
