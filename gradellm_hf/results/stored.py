"""Heatmaps as tensors of a file: all scores before each step, or the strongest and the rest; in float32 or float16.

This is how shards of a dataset hold them, and files that are asked to be small. Scores in float16 have a power of two for
each row, so that its largest is from 2^14 to 2^15. A score that is not below 2^-28 of that is then right to 2^-11, half a
thousandth.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks.schema import TensorKind, check_tensors
from ..errors import InvalidInputError
from ..text.readable import earlier_positions
from ..text.rest import Rest
from .kept import Kept, restored

DTYPES = {"float32": torch.float32, "float16": torch.float16}
CLASSES = "rest_classes"
_SCORES, _FLOAT, _POSITIONS = (torch.float32, torch.float16), (torch.float32,), (torch.int16, torch.int32)
_LARGEST_EXPONENT = 15  # float16 ends a little below 2^16
_SMALLEST_EXPONENT = -126  # of float32, without losing digits


class Seen(NamedTuple):
    """Which scores a heatmap `[N, S]` has.

    Attributes:
        prompt_length: `P`.
        num_steps: `N`.
        rows: The steps that are explained; None for all.
        own: Whether a generated unit has a score for itself, as larger units do.
        later: Whether there are scores after a step, as no model gives them.
    """

    prompt_length: int
    num_steps: int
    rows: Sequence[int] | None = None
    own: bool = False
    later: bool = False

    @property
    def length(self) -> int:
        return self.prompt_length + self.num_steps

    @property
    def num_scores(self) -> int:
        rows = range(self.num_steps) if self.rows is None else self.rows
        return len(rows) * self.length if self.later else len(rows) * (self.prompt_length + self.own) + sum(rows)

    def mask(self) -> Tensor:
        """`[N, S]` bool."""
        if self.later:
            mask = torch.ones(self.num_steps, self.length, dtype=torch.bool)
        else:
            mask = earlier_positions(self.prompt_length, self.num_steps, self.length, own=self.own)
        if self.rows is not None:
            is_explained = torch.zeros(self.num_steps, 1, dtype=torch.bool)
            is_explained[list(self.rows)] = True
            mask &= is_explained
        return mask


def names(heatmaps: Sequence[str]) -> list[str]:
    """What the tensors may be called that hold these heatmaps."""
    suffixes = ("", "_scales", "_counts", "_positions", "_rest", "_rest_largest")
    return [CLASSES, *(name + suffix for name in heatmaps for suffix in suffixes)]


def stored(name: str, heatmap: Tensor, seen: Seen, dtype: torch.dtype) -> dict[str, Tensor]:
    """All scores of heatmaps `[..., N, S]` that a step may have.

    Args:
        name: Of the tensor.
        heatmap: The scores.
        seen: Which they are.
        dtype: In which they are stored.
    """
    mask = seen.mask()
    if dtype != torch.float16:
        return {name: heatmap[..., mask]}
    scales = _scales(heatmap.abs().amax(-1)) if heatmap.numel() else heatmap.new_ones(heatmap.shape[:-1])
    return {name: (heatmap / scales[..., None])[..., mask].to(dtype), f"{name}_scales": scales}


def stored_kept(name: str, kept: Kept, rest: Rest, dtype: torch.dtype) -> dict[str, Tensor]:
    """The strongest scores of heatmaps, and how much is left out.

    Args:
        name: Of the tensor with the scores.
        kept: They.
        rest: What is left out. All heatmaps of a file have the same classes.
        dtype: In which the scores are stored.
    """
    tensors = {f"{name}_counts": kept.counts, f"{name}_positions": kept.positions, CLASSES: rest.classes}
    tensors[f"{name}_rest"] = rest.sums
    if rest.largest is not None:
        tensors[f"{name}_rest_largest"] = rest.largest
    if dtype != torch.float16:
        return {name: kept.scores, **tensors}
    rows = torch.arange(kept.counts.numel()).repeat_interleave(kept.counts.flatten())
    largest = kept.scores.new_zeros(kept.counts.numel()).scatter_reduce_(0, rows, kept.scores.abs(), "amax")
    scales = _scales(largest)
    scaled = (kept.scores / scales[rows]).to(dtype)
    return {name: scaled, f"{name}_scales": scales.view(kept.counts.shape), **tensors}


def read(name: str, tensors: Mapping[str, Tensor], seen: Seen, sizes: Mapping[str, int]) -> tuple[Tensor, Rest | None]:
    """Heatmaps that `stored` or `stored_kept` made tensors of, `[..., N, S]` float32, and what is left out.

    Args:
        name: Of the tensor.
        tensors: Of the file.
        seen: Which scores they have.
        sizes: The dimensions before `N` by their letters, in their order; -1 if not known. Classes have that of `R`, too.

    Raises:
        InvalidInputError: The tensors do not fit together.
    """
    before = "".join(sizes)
    known = {**sizes, "N": seen.num_steps, "S": seen.length}
    scales = {f"{name}_scales": TensorKind(before + "N", _FLOAT, (0, torch.inf), optional=True)}
    if f"{name}_counts" not in tensors:
        check_tensors(tensors, {name: TensorKind(before + "C", _SCORES), **scales}, {**known, "C": seen.num_scores})
        mask, scores = seen.mask(), tensors[name].float()
        heatmap = scores.new_zeros(*scores.shape[:-1], *mask.shape).masked_scatter_(mask, scores)
        return _rescaled(heatmap, tensors.get(f"{name}_scales"), None), None
    kinds = {
        name: TensorKind("K", _SCORES),
        **scales,
        f"{name}_counts": TensorKind(before + "N", (torch.int32,), (0, seen.length)),
        f"{name}_positions": TensorKind("K", _POSITIONS, (0, seen.length - 1)),
        f"{name}_rest": TensorKind(before + "NC", _FLOAT, (0, torch.inf)),
        f"{name}_rest_largest": TensorKind(before + "NC", _FLOAT, (0, torch.inf), optional=True),
        CLASSES: TensorKind("RS" if "R" in sizes else "S", (torch.uint8,)),
    }
    check_tensors(tensors, kinds, known)
    counts, positions = tensors[f"{name}_counts"], tensors[f"{name}_positions"]
    rows = torch.arange(counts.numel()).repeat_interleave(counts.flatten()) if int(counts.sum()) == len(positions) else None
    if rows is None or ((rows[1:] == rows[:-1]) & (positions[1:] <= positions[:-1])).any():
        raise InvalidInputError(f"`{name}_counts` and `{name}_positions` do not fit together.")
    scores = _rescaled(tensors[name].float(), tensors.get(f"{name}_scales"), rows)
    heatmap = restored(Kept(counts, positions, scores), seen.length)
    return heatmap, Rest(tensors[CLASSES], tensors[f"{name}_rest"], tensors.get(f"{name}_rest_largest"))


def _scales(largest: Tensor) -> Tensor:
    exponents = (torch.frexp(largest).exponent - _LARGEST_EXPONENT).clamp_min(_SMALLEST_EXPONENT)
    return torch.ldexp(torch.ones_like(largest), exponents)


def _rescaled(scores: Tensor, scales: Tensor | None, rows: Tensor | None) -> Tensor:
    """In place."""
    if scales is None:
        return scores
    return scores.mul_(scales[..., None] if rows is None else scales.flatten()[rows])
