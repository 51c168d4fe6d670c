"""Where each row of a generation ends. It is not guessed from the tokens: it is seen when `generate` decides it."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteria

from .positions import PositionRoom


class RowEnds(StoppingCriteria):
    """The last stopping criterion of a call of `generate`. It ends no row, but learns which rows the others end.

    A `StoppingCriteriaList` joins the answers of its criteria with `|`, one after the other. The answer of this one is False
    for every row. It is a tensor that notices what it is joined to: the answers of all criteria before it, also of those that
    `generate` added itself.

    Args:
        prompt_length: Columns of the prompt in the sequences.
        room: How many tokens the model can read. If a row goes on for longer, an InvalidInputError ends the generation.
    """

    def __init__(self, prompt_length: int, room: PositionRoom) -> None:
        self._prompt_length, self._room = prompt_length, room
        self._ids: Tensor | None = None  # of the last step, `[R, tokens]`
        self._lengths: Tensor  # tokens of each row at its end, `[R]`; 0 while it goes on
        self._in_place: Tensor  # whether every row has been the continuation of the row at its place one step before

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        no_row = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device).as_subclass(_NoRow)
        no_row.see = functools.partial(self._see, input_ids)
        return no_row

    def _see(self, input_ids: Tensor, decided: Tensor) -> None:
        before = self._ids
        if before is None:
            self._lengths = torch.zeros(input_ids.shape[0], dtype=torch.long, device=input_ids.device)
            self._in_place = torch.tensor(True, device=input_ids.device)
        elif before.shape[0] != input_ids.shape[0] or before.shape[1] > input_ids.shape[1]:
            self._in_place = torch.zeros_like(self._in_place)
            return  # these are other rows
        else:  # stays on the device, which is not waited for
            self._in_place = self._in_place & (input_ids[:, : before.shape[1]] == before).all()
        self._ids = input_ids
        self._lengths = torch.where(decided & (self._lengths == 0), input_ids.shape[1], self._lengths)
        num_steps = input_ids.shape[1] - self._prompt_length
        if not self._room.fits(num_steps + 1) and not self._lengths.all():
            self._room.check(num_steps + 1)

    def step_mask(self, sequences: Tensor) -> Tensor | None:
        """False for steps after a row's end, `[R, N]`; None if it is not known.

        It is known only if the criteria were asked about the returned rows, in the same order at each step. Beam search
        changes the order (its `beam_indices` say where a row ends). A `custom_generate` function may not ask them at all.

        Args:
            sequences: What `generate` has returned, or has written so far, `[R, S]`.
        """
        if self._ids is None or self._ids.shape[0] != sequences.shape[0] or not self._in_place:
            return None
        length = min(self._ids.shape[1], sequences.shape[1])
        if not torch.equal(self._ids[:, :length].to(sequences), sequences[:, :length]):
            return None
        lengths = self._lengths[:, None].to(sequences.device)
        return (lengths == 0) | (torch.arange(self._prompt_length, sequences.shape[1], device=sequences.device) < lengths)


class _NoRow(Tensor):
    """False for each row. `decided | this` is `decided`, and calls `see(decided)`."""

    # every other operation is that of a plain tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl
    see: Callable[[Tensor], None]

    def __ror__(self, decided: Tensor | int) -> Tensor:
        decided = torch.as_tensor(decided)
        self.see(decided)
        return decided


def until_end_of_sequence(generated_ids: Tensor, end_ids: list[int]) -> Tensor:
    """Step mask `[R, N]`: False after the first end-of-sequence token of a row."""
    return _until(_is_one_of(generated_ids, end_ids))


def until_padding(given_ids: Tensor, end_ids: list[int], padding_ids: list[int]) -> Tensor:
    """Step mask `[R, N]`: False after an end-of-sequence token after which only padding, or more such tokens, follow."""
    is_eos = _is_one_of(given_ids, end_ids)
    is_filling = is_eos | _is_one_of(given_ids, padding_ids)
    return _until(is_eos & is_filling.flip(1).cumprod(1).flip(1).bool())


def _until(is_last: Tensor) -> Tensor:
    """False after the first True of a row."""
    return is_last.cumsum(1) - is_last.long() == 0


def _is_one_of(token_ids: Tensor, known: list[int]) -> Tensor:
    return torch.isin(token_ids, torch.tensor(known, dtype=torch.long, device=token_ids.device))


def eos_token_ids(eos: int | list[int] | Tensor | None) -> list[int]:
    """The ids that end a row, from any form in which a generation config has them."""
    return [] if eos is None else torch.as_tensor(eos).flatten().tolist()
