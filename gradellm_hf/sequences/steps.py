"""Which of the generated tokens are explained: a slice or indices, as Python counts."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks.arguments import is_index, is_list
from ..errors import InvalidInputError

Steps = slice | Sequence[int]


def checked_steps(steps: Any) -> Steps | None:
    """A slice, a list of ints, or None for all steps.

    Raises:
        InvalidInputError: It is something else.
    """
    if steps is None:
        return None
    if isinstance(steps, slice):
        bounds = (steps.start, steps.stop, steps.step)
        if all(bound is None or is_index(bound) for bound in bounds) and steps.step != 0:
            return steps
    indices = steps.tolist() if isinstance(steps, Tensor) else steps
    if is_list(indices) and len(indices) and all(map(is_index, indices)):
        return list(map(operator.index, indices))
    raise InvalidInputError(
        "`steps` must be a slice or a list of at least one index of a generated token, such as slice(-16, None) or [0, 5, -1], "
        f"got {steps!r}."
    )


def explained_mask(steps: Steps, step_mask: Tensor) -> Tensor:
    """Which steps are explained, `[R, N]` bool. Each row counts its own tokens: -1 is its last one.

    Args:
        steps: What `checked_steps` returned.
        step_mask: False for steps after a row's end, `[R, N]`.

    Raises:
        InvalidInputError: There is an index that no row has. A slice may select nothing, as in Python.
    """
    lengths = step_mask.sum(-1).tolist()
    longest = max(lengths, default=0)
    if not isinstance(steps, slice) and (beyond := [step for step in steps if not -longest <= step < longest]):
        raise InvalidInputError(
            f"`steps` has {beyond[0]}, but {longest} tokens are generated. Give -{longest} to {longest - 1}."
        )
    mask = torch.zeros(step_mask.shape, dtype=torch.bool)
    for row, length in enumerate(lengths):
        its_own = range(length)
        chosen = its_own[steps] if isinstance(steps, slice) else [its_own[n] for n in steps if -length <= n < length]
        mask[row, list(chosen)] = True
    return mask.to(step_mask.device)
