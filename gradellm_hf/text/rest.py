"""What is not kept of a heatmap of which only the strongest scores are: its sums, by classes of units."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rest:
    """What is left out of a heatmap `[N, S]`. With dimensions before these (layers, say), `sums` and `largest` have them too.

    The `S` units are of `C` classes, such as special tokens or the answer's own text; no class has units on both sides of the
    border between prompt and generated text. Of every row and class it is known how much is left out, and how large a score
    may be that is.

    Attributes:
        classes: The class of each unit, `[S]` uint8.
        sums: Sums of the absolute scores that are left out, `[N, C]` float32.
        largest: The largest of them, `[N, C]` float32; None if it is not known.
    """

    classes: Tensor
    sums: Tensor
    largest: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """How much of each row is left out, as a sum of absolute scores, `[N]`."""
        return self.sums.sum(-1)

    def of(self, index: int) -> "Rest":
        """That of one of several heatmaps, by the first dimension of `sums`."""
        largest = None if self.largest is None else self.largest[index]
        return Rest(self.classes if self.classes.ndim == 1 else self.classes[index], self.sums[index], largest)

    def of_rows(self, rows: Tensor) -> "Rest":
        """That of these rows."""
        return self.trimmed(torch.ones_like(self.classes, dtype=torch.bool), rows)

    def trimmed(self, units: Tensor, rows: Tensor) -> "Rest":
        """That of these units (a mask) and rows (a mask or numbers) only."""
        largest = None if self.largest is None else self.largest[..., rows, :]
        return Rest(self.classes[units], self.sums[..., rows, :], largest)

    def scaled(self, total: Tensor) -> "Rest":
        """That of a heatmap whose rows were divided by these numbers, `[N, 1]`."""
        return Rest(self.classes, self.sums / total, None if self.largest is None else self.largest / total)

    def without(self, ignored: Tensor) -> "Rest":
        """That of a heatmap in which the scores of these units (`[S]` bool) became 0: of classes that have no others."""
        others = torch.zeros(self.sums.shape[-1], dtype=torch.bool)
        others[self.classes[~ignored].long()] = True
        return dataclasses.replace(self, sums=self.sums * others)

    def merged(self, prompt_length: int, units: tuple[int, int], step_of: Tensor) -> "Rest":
        """That of larger units. How large a score may be that is left out of one is not known then.

        Args:
            prompt_length: `P`, of the units that these are made of.
            units: How many of the larger ones are in the prompt, and in the generated text.
            step_of: The larger unit of each row, `[N]`, counted from the first generated one.
        """
        is_own = torch.zeros(self.sums.shape[-1], dtype=torch.long)
        is_own[self.classes[prompt_length:].long()] = 1
        by_side = self.sums.new_zeros(*self.sums.shape[:-1], 2).index_add_(-1, is_own, self.sums)
        sums = by_side.new_zeros(*by_side.shape[:-2], units[1], 2).index_add_(-2, step_of, by_side)
        return Rest(torch.tensor([0, 1], dtype=torch.uint8).repeat_interleave(torch.tensor(units)), sums)

    def by_kind(
        self, kinds: Sequence[str], candidates: Tensor, least: Tensor, weak: str, unknown: str
    ) -> Iterator[tuple[str, Tensor]]:
        """What is left out of each row, `[N]`, by what it is.

        Args:
            kinds: Of the `S` units.
            candidates: Which of them may be sources, `[S]` bool.
            least: From which size on a score of a row counts, `[N]`.
            weak: What scores of candidates are that cannot count.
            unknown: What it is called if a class has units of several kinds, or scores that could count.
        """
        for number in range(self.sums.shape[-1]):
            members = self.classes == number
            found = {kind for kind, is_member in zip(kinds, members.tolist()) if is_member}
            sums = self.sums[..., number]
            if not candidates[members].any():
                yield (found.pop() if len(found) == 1 else unknown), sums
                continue
            is_weak = torch.zeros(sums.shape, dtype=torch.bool)
            if self.largest is not None and candidates[members].all():
                is_weak = self.largest[..., number] < least
            yield weak, sums.where(is_weak, 0)
            yield unknown, sums.where(~is_weak, 0)

    def certain(self, kinds: Sequence[str], scores: Tensor, threshold: float, unknown: str) -> Iterator[tuple[str, Tensor]]:
        """What is left out of each row, `[N]`, by kind, whatever kinds are sources; else by the name `unknown`.

        Args:
            kinds: Of the `S` units.
            scores: The heatmap.
            threshold: A score counts if it is at least this share of the largest one.
            unknown: As for `by_kind`.
        """
        for number in range(self.sums.shape[-1]):
            members, sums = self.classes == number, self.sums[..., number]
            found = {kind for kind, is_member in zip(kinds, members.tolist()) if is_member}
            is_small = torch.zeros(sums.shape, dtype=torch.bool)
            if self.largest is not None and len(found) == 1:
                is_small = self.largest[..., number] < threshold * scores[..., members].abs().amax(-1)
                yield found.pop(), sums.where(is_small, 0)
            yield unknown, sums.where(~is_small, 0)

    def may_count(self, candidates: Tensor, least: Tensor) -> Tensor:
        """Whether a score that is left out of a row could be one that counts, `[N]` bool; arguments as for `by_kind`."""
        has_candidate = torch.zeros(self.sums.shape[-1], dtype=torch.bool)
        has_candidate[self.classes[candidates].long()] = True
        is_large = self.sums > 0 if self.largest is None else (self.sums > 0) & (self.largest >= least[..., None])
        return (is_large & has_candidate).any(-1)
