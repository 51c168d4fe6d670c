"""Heatmaps as a page holds them: about a bit for each score of a long text, shares kept right.

A row's scores are whole numbers relative to the largest score of its class, in `levels` steps. A score below a fifth of that
never counts (`THRESHOLD`), whatever else may be a source. So it is 1 (weak), or 0 (as good as nothing) if it is below `weak`.
Which scores count is the same as without rounding: where rounding would change it, a score moves by one step. Classes are the
kinds of `text.shares.kinds`, so that a special token, which often holds most of a row, takes no resolution from the others. If
there are spans, what is inside and outside of them are two classes.
"""

import base64
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..text.readable import earlier_positions
from ..text.shares import THRESHOLD


class Precision(NamedTuple):
    """Of quantised scores, relative to the largest: a fifth of it must be a whole number of steps."""

    levels: int
    weak: float


FINE = Precision(levels=125, weak=0.01)
COARSE = Precision(levels=15, weak=0.05)  # for single layers, of which there are many
_ROWS = 256  # that are quantised together: a long text has many times its size in scores


def packed(
    scores: Tensor,
    classes: Sequence[int],
    candidates: Iterable[Tensor],
    precision: Precision,
    *,
    own: bool,
    rest: Tensor | None = None,
) -> dict[str, Any]:
    """Scores `[N, S]` for `web/scores.js`.

    Args:
        scores: Of `N` generated units.
        classes: The class of each of the `S` units: 0, 1, ... in any order.
        candidates: Sets of units, `[S]` bool each, of which the scores that count are kept exactly.
        precision: Of what is kept.
        own: Whether a generated unit has a score for itself.
        rest: What was not kept, by classes: sums of absolute scores `[N, C]`. The last class is of no unit.

    Returns:
        `levels`, and `scores`: base64 of deflated bytes. First the largest score of each row and class `[N, C]` and the sums of
        absolute scores `[N, C]`, both float32, little-endian. Then one bit for each unit before a row's own, row after row:
        whether it is not 0; of eight bits the first is the lowest. Then a signed byte for each that is not.
    """
    num_steps, length = scores.shape
    class_of, sets = torch.tensor(classes, dtype=torch.long), list(candidates)
    blocks = [
        _rows(scores[start : start + _ROWS], length - num_steps + start, class_of, sets, precision, own)
        for start in range(0, num_steps, _ROWS)
    ]
    largest, total, quantised = (torch.cat(parts) for parts in zip(*blocks)) if blocks else [scores.new_zeros(0)] * 3
    if rest is not None:
        largest, total = (torch.nn.functional.pad(x, (0, rest.shape[-1] - x.shape[-1])) for x in (largest, total))
        total = total + rest
    raw = b"".join(
        x.numpy().tobytes() for x in (largest, total, _bits(quantised != 0), quantised[quantised != 0].to(torch.int8))
    )
    return {"scores": base64.b64encode(zlib.compress(raw)).decode(), "levels": precision.levels}


def _rows(
    scores: Tensor, first: int, class_of: Tensor, candidates: list[Tensor], precision: Precision, own: bool
) -> list[Tensor]:
    """Largest scores, sums and quantised scores of some rows, of which the first is at position `first`."""
    before = earlier_positions(first, *scores.shape, own=own)
    exact = scores.masked_fill(~before, 0)
    size = exact.abs()
    members = [size[:, class_of == kind] for kind in range(int(class_of.max()) + 1)]
    largest = torch.stack([x.amax(-1) for x in members], -1)
    total = torch.stack([x.sum(-1) for x in members], -1)
    step = largest.double()[:, class_of] / precision.levels
    steps = (size.double() / step.clamp_min(torch.finfo(torch.float32).tiny)).round()
    for candidate in candidates:
        steps = _counted_alike(size, steps, step, candidate)
    is_weak = (size >= precision.weak * precision.levels * step) & (size > 0)
    steps = torch.where(steps < THRESHOLD * precision.levels, is_weak, steps)
    quantised = (steps * exact.sign()).to(torch.int8)[before]
    return [largest.float(), total.float(), quantised]


def _bits(values: Tensor) -> Tensor:
    """Bools as bytes, eight each."""
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, -len(values) % 8))
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def _counted_alike(size: Tensor, steps: Tensor, step: Tensor, candidate: Tensor) -> Tensor:
    """The steps, moved by one where a rounded score counts and the score itself does not, or the reverse."""
    should = size >= THRESHOLD * size.masked_fill(~candidate, 0).amax(-1, keepdim=True)
    rounded = steps * step
    does = rounded >= THRESHOLD * rounded.masked_fill(~candidate, 0).amax(-1, keepdim=True)
    change = should.to(steps.dtype) - does.to(steps.dtype)
    return torch.where(candidate & (size > 0), (steps + change).clamp_min(0), steps)
