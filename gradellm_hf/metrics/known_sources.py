"""Where the right source is in the order of scores: for texts of which it is known what an answer rests on."""

import torch
from torch import Tensor

from ..checks.arguments import whole_number
from .agreement import checked_labels
from .ranks import average_ranks


def reciprocal_rank(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """One over the rank of the right source, of several the highest. Range (0, 1]; the mean over prompts is MRR.

    Equal scores share the mean of their ranks.

    Source: Voorhees 1999 (TREC-8 Question Answering Track).

    Args:
        scores: Of each source, `[..., G]`.
        labels: True (or 1) for right sources, broadcast to `[..., G]`.
        mask: Which sources count, broadcast to `[..., G]`; None: all.

    Returns:
        `[...]`, float64; NaN if no source is right.

    Raises:
        InvalidInputError: Shapes do not fit, a score is NaN, or `labels` or `mask` hold something other than 0 and 1.

    Examples:
        >>> reciprocal_rank(torch.tensor([0.1, 0.9, 0.4]), torch.tensor([0, 0, 1]))  # second of three
        tensor(0.5000, dtype=torch.float64)
    """
    right, mask = checked_labels(scores, labels, mask)
    ranks = mask.sum(-1, keepdim=True) + 1 - average_ranks(scores, mask)
    return (1 / ranks).masked_fill(~right, -torch.inf).amax(-1).masked_fill(~right.any(-1), torch.nan)


def recall_at_k(scores: Tensor, labels: Tensor, mask: Tensor | None = None, *, k: int) -> Tensor:
    """The share of the right sources that are among the `k` highest scores. Range [0, 1].

    Where equal scores are on both sides of the border, it is the mean over their orders.

    Args:
        k: How many sources are looked at.

    The other arguments and the return value, `[...]`, are as for `reciprocal_rank`.

    Raises:
        InvalidInputError: As for `reciprocal_rank`, or `k` is no int of at least 1.

    Examples:
        >>> recall_at_k(torch.tensor([0.1, 0.9, 0.4]), torch.tensor([1, 0, 1]), k=2)
        tensor(0.5000, dtype=torch.float64)
    """
    k = whole_number("k", k, 1)
    right, mask = checked_labels(scores, labels, mask)
    x = scores.double()
    above = ((x[..., None, :] > x[..., :, None]) & mask[..., None, :]).sum(-1)
    alike = ((x[..., None, :] == x[..., :, None]) & mask[..., None, :]).sum(-1)
    chances = ((k - above) / alike.clamp_min(1)).double().clamp(0, 1)
    return chances.masked_fill(~right, 0).sum(-1) / right.sum(-1)
