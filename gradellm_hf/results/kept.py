"""The strongest scores of heatmaps, and the rest as sums: what keeps long results small."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..checks.arguments import is_index
from ..errors import InvalidInputError
from ..text.readable import Readable
from ..text.rest import Rest
from ..text.shares import THRESHOLD, kinds

#: `"top"`, or how many scores of each class are kept.
Keep = Literal["top"] | int
#: The fields that say what is left out of heatmaps, by the fields of these.
REST_OF = {"attributions": "rest", "layer_attributions": "layer_rest"}
_BLOCK = 2**20  # scores that are looked at together: a long text has many times its size in scores
# A little below what counts: rounding what is kept to float16 makes nothing that is left out seem to count.
_TOP = THRESHOLD * (1 - 2**-9)


class Kept(NamedTuple):
    """Scores that are not 0, row after row of heatmaps `[..., N, S]`.

    Attributes:
        counts: How many each row has, `[..., N]` int32.
        positions: Their units, int16, or int32 if there are too many.
        scores: Of the dtype of the heatmaps.
    """

    counts: Tensor
    positions: Tensor
    scores: Tensor


def checked_keep(keep: Any) -> Keep | None:
    """`"top"`, a number of at least 1, or None.

    Raises:
        InvalidInputError: It is something else.
    """
    if keep is None:
        return None
    if isinstance(keep, str) and keep == "top":
        return "top"
    if is_index(keep) and keep >= 1:
        return int(keep)
    raise InvalidInputError(
        '`keep` must be "top" (all scores that can count in a share), a number of at least 1 (so many of each kind of unit), '
        f"or None (all scores), got {keep!r}."
    )


def needed_keep(keep: Any) -> Keep:
    """`"top"`, or a number of at least 1.

    Raises:
        InvalidInputError: It is something else.
    """
    found = checked_keep(keep)
    if found is None:
        raise InvalidInputError('`keep` must be "top" or a number of at least 1, got None.')
    return found


def compacted(explanation: Readable, keep: Any) -> dict[str, Any]:
    """The fields of `Explanation.compact`.

    Raises:
        InvalidInputError: As `needed_keep`.
    """
    keep = needed_keep(keep)
    length = len(explanation.tokens)
    fields: dict[str, Any] = {}
    for name, (scores, rest) in heatmaps_of(explanation).items():
        kept, left = reduced_by(scores, rest, classes_of(explanation), keep)
        fields |= {name: restored(kept, length), REST_OF[name]: left}
    return fields


def heatmaps_of(explanation: Readable) -> dict[str, tuple[Tensor, Rest | None]]:
    """The heatmaps that it has, by name, each with its rest."""
    found = {"attributions": (explanation.attributions, explanation.rest)}
    if explanation.layer_attributions is not None:
        found["layer_attributions"] = (explanation.layer_attributions, explanation.layer_rest)
    return found


def reduced_by(scores: Tensor, rest: Rest | None, classes: Tensor, keep: Keep | None) -> tuple[Kept, Rest]:
    """`reduced`, by the same classes as `rest`, which was left out before; with `keep=None` the heatmaps stay as they are."""
    if keep is None:
        nothing = torch.zeros(*scores.shape[:-1], int(classes.max()) + 1 if classes.numel() else 0)
        return all_kept(scores), Rest(classes, nothing, nothing) if rest is None else rest
    kept, more = reduced(scores, classes, keep)
    if rest is None:
        return kept, more
    width = rest.sums.shape[-1]
    largest = None if rest.largest is None else torch.maximum(rest.largest, _widened(more.largest, width))
    return kept, Rest(classes, rest.sums + _widened(more.sums, width), largest)


def classes_of(explanation: Readable) -> Tensor:
    """The classes of the units, `[S]` uint8: their kinds, in the prompt and in the generated text; the first alone is one.

    Of an explanation that was reduced before, those of then.
    """
    if explanation.rest is not None:
        return explanation.rest.classes
    return numbered([(kind, i >= explanation.prompt_length, i == 0) for i, kind in enumerate(kinds(explanation))])


def numbered(names: Sequence[Any]) -> Tensor:
    """Equal ones have equal numbers, from 0 on, uint8."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names], dtype=torch.uint8)


def reduced(scores: Tensor, classes: Tensor, keep: Keep) -> tuple[Kept, Rest]:
    """The strongest scores of each row and class, and what is left out. No second heatmap is made.

    Args:
        scores: `[..., N, S]`.
        classes: Of the units, `[S]`; or `[R, S]` of the first dimension's heatmaps.
        keep: `"top"`: all scores of at least a fifth of the largest of their row and class. Whatever is a source, others do not
            count in a share. A number: so many.
    """
    if scores.ndim > 2:
        each = classes if classes.ndim > 1 else classes.expand(len(scores), -1)
        parts = [reduced(one, its, keep) for one, its in zip(scores, each)]
        kept = Kept(
            torch.stack([part.counts for part, _ in parts]),
            torch.cat([part.positions for part, _ in parts]),
            torch.cat([part.scores for part, _ in parts]),
        )
        width = max(rest.sums.shape[-1] for _, rest in parts)
        sums, largest = (
            torch.stack([_widened(x, width) for x in found]) for found in zip(*((rest.sums, rest.largest) for _, rest in parts))
        )
        return kept, Rest(classes, sums, largest)
    members = [(classes == number).nonzero().flatten() for number in range(int(classes.max()) + 1 if len(classes) else 0)]
    blocks = [_strongest(block, members, keep) for block in _blocks(scores)]
    kept = _joined([block for block, _, _ in blocks])
    sums, largest = (torch.cat(found) for found in ([block[1] for block in blocks], [block[2] for block in blocks]))
    return kept, Rest(classes, sums, largest)


def all_kept(scores: Tensor) -> Kept:
    """All that is not 0."""
    rows = scores.reshape(-1, scores.shape[-1])
    kept = _joined([_packed(block, None) for block in _blocks(rows)])
    return kept._replace(counts=kept.counts.view(scores.shape[:-1]))


def restored(kept: Kept, length: int) -> Tensor:
    """The heatmaps `[..., N, S]`, with 0 where nothing was kept."""
    rows = torch.arange(kept.counts.numel()).repeat_interleave(kept.counts.flatten())
    dense = kept.scores.new_zeros(kept.counts.numel(), length)
    dense[rows, kept.positions.long()] = kept.scores
    return dense.view(*kept.counts.shape, length)


def _blocks(scores: Tensor) -> tuple[Tensor, ...]:
    """Rows `[N, S]` in parts; at least one, which may be empty."""
    blocks: tuple[Tensor, ...] = scores.split(max(1, _BLOCK // max(1, scores.shape[-1])))
    return blocks


def _strongest(scores: Tensor, members: list[Tensor], keep: Keep) -> tuple[Kept, Tensor, Tensor]:
    """What is kept of some rows `[M, S]`; of what is not the sums and the largest, `[M, C]`."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    sums, largest = (torch.zeros(len(scores), len(members)) for _ in range(2))
    for number, units in enumerate(members):
        size = scores[:, units].abs()
        if not size.numel():
            continue
        if keep == "top":
            is_kept = size >= _TOP * size.amax(-1, keepdim=True)
        else:
            is_kept = torch.zeros(size.shape, dtype=torch.bool)
            is_kept.scatter_(-1, size.topk(min(keep, len(units))).indices, True)
        left = size.masked_fill(is_kept, 0)
        mask[:, units] = is_kept
        sums[:, number], largest[:, number] = left.sum(-1, dtype=torch.float64).float(), left.amax(-1).float()
    return _packed(scores, mask), sums, largest


def _packed(scores: Tensor, mask: Tensor | None) -> Kept:
    mask = scores != 0 if mask is None else mask & (scores != 0)
    dtype = torch.int16 if scores.shape[-1] < 2**15 else torch.int32
    return Kept(mask.sum(-1, dtype=torch.int32), mask.nonzero()[:, 1].to(dtype), scores[mask])


def _joined(blocks: list[Kept]) -> Kept:
    return Kept(*(torch.cat(parts) for parts in zip(*blocks)))


def _widened(x: Tensor | None, num_classes: int) -> Tensor:
    """With a column for each class, also for those without units."""
    if x is None:
        raise ValueError("What is reduced just now knows the largest of what it leaves out.")
    return torch.nn.functional.pad(x, (0, num_classes - x.shape[-1]))
