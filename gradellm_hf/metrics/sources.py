"""The sources of a prompt: what is taken out of it as a whole, be it a token, a sentence or a document."""

from typing import get_args

import torch
from torch import Tensor

from ..checks.arguments import choice
from ..errors import InvalidInputError
from .perturbation import PerturbedText, Removal, Window


class Sources:
    """The `G` sources of a text's prompt. Shape letters as for `PerturbedText`.

    Args:
        text: Made with `keep_last`, unless `removal` is `"zero"`.
        sources: The number of each prompt position's source, `[P]` or `[R, P]`; -1 for positions that always stay. None: every
            position by itself.
        removal: How a source is taken out; see `PerturbedText.log_probabilities`.

    Attributes:
        num_sources: `G`.
        source_of: The number of each position's source, `[R, P]`; `G` for positions that always stay.
        present: Which sources a row has, `[R, G]`: those of which some position may be taken out.

    Raises:
        InvalidInputError: The sources are not of this prompt, or none may be taken out of a row.
    """

    def __init__(self, text: PerturbedText, sources: Tensor | None, removal: Removal):
        self._text = text
        self._removal: Removal = choice("removal", removal, get_args(Removal))
        given = _checked(sources, text)
        self.num_sources = int(given.max()) + 1
        self.source_of = given.masked_fill(~text.removable | (given < 0), self.num_sources)
        self.present = sums_by_source(torch.ones_like(given), self.source_of, self.num_sources) > 0
        if not bool(self.present.any(dim=1).all()):
            raise InvalidInputError("A row has no source that may be taken out: all its positions are padding, `fixed`, or -1.")

    def sums(self, scores: Tensor, rows: Tensor) -> Tensor:
        """The scores of sources, `[..., r, G]`: sums of those of their positions, `[..., r, P]`."""
        return sums_by_source(scores, self.source_of[rows], self.num_sources)

    def log_probabilities(self, rows: Tensor, window: Window, kept: Tensor) -> Tensor:
        """Log-probabilities of the generated tokens of a window with some sources only, `[B, last - first]`.

        Args:
            rows: The row of each text, `[B]`.
            kept: True for sources that stay, `[B, G]`.
        """
        always = kept.new_ones(len(kept), 1)
        positions = torch.cat([kept, always], dim=1).gather(1, self.source_of[rows])
        return self._text.target_log_probabilities(rows, window, positions, self._removal)

    def random_ablations(self, num_masks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Masks that keep each source with probability 1/2, and what is left of all generated tokens.

        Returns:
            Masks `[R, K, G]`, and log-probabilities `[R, K, N]`.
        """
        rows, device = self._text.num_rows, self.source_of.device
        kept = torch.rand(rows, num_masks, self.num_sources, generator=generator).to(device) < 0.5
        row = torch.arange(rows, device=device).repeat_interleave(num_masks)
        found = self.log_probabilities(row, Window(0, self._text.num_steps), kept.flatten(0, 1))
        return kept, found.unflatten(0, (rows, num_masks))

    def ties(self, generator: torch.Generator) -> Tensor:
        """Random numbers by which equal scores are ordered, `[R, G]`, the same for all methods."""
        return torch.rand(self._text.num_rows, self.num_sources, generator=generator).to(self.source_of.device)


def sums_by_source(x: Tensor, source_of: Tensor, num_sources: int) -> Tensor:
    """Sums of `x [..., P]` over the positions of each source, `[..., G]`.

    Args:
        source_of: The number of each position's source, broadcast to `[..., P]`; `num_sources` for positions that do not count.
    """
    sums = x.new_zeros(*x.shape[:-1], num_sources + 1)
    return sums.scatter_add(-1, source_of.expand(x.shape), x)[..., :-1]


def _checked(sources: Tensor | None, text: PerturbedText) -> Tensor:
    """The number of each position's source, `[R, P]`."""
    shape = text.removable.shape
    if sources is None:
        return torch.arange(shape[1], device=text.removable.device).expand(shape)
    expected = f"`sources` must be a tensor of ints from -1 up, of shape [P] or [R, P], {list(shape[1:])} or {list(shape)}"
    if not isinstance(sources, Tensor) or sources.shape not in (shape, shape[1:]):
        got = list(sources.shape) if isinstance(sources, Tensor) else type(sources).__name__
        raise InvalidInputError(f"{expected}, got {got}.")
    if sources.is_floating_point() or sources.is_complex() or sources.dtype == torch.bool:
        raise InvalidInputError(f"{expected}, got {sources.dtype}.")
    if not -1 <= int(sources.min()) <= int(sources.max()) < shape[1]:
        raise InvalidInputError(f"{expected}, below {shape[1]}, got {int(sources.min())} to {int(sources.max())}.")
    return sources.to(text.removable.device, torch.long).expand(shape)
