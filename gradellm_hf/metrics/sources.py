"""A text whose prompt is taken out source by source: a source is a token, a sentence or a document."""

from typing import Any, get_args

import torch
from torch import Tensor

from ..checks.arguments import choice
from ..errors import InvalidInputError
from .measured import MeasuredText
from .options import MetricOptions
from .perturbation import Removal, Window


class SourceText(MeasuredText):
    """A `MeasuredText` with its sources. Shape letters as there; `G` sources.

    Args:
        model, sequences, prompt_length, attributions, attention_mask, options: As for `MeasuredText`.
        removal: How a source is taken out; see `PerturbedText.log_probabilities`. Unless it is `"zero"`, the last position of
            the prompt always stays, since the first token is predicted from it.

    Attributes:
        num_sources: `G`.
        present: Which sources a row has, `[R, G]`: those of which some position may be taken out.

    Raises:
        InvalidInputError: As for `MeasuredText`, or `options.sources` are not sources of this prompt.
        UnsupportedArchitectureError: The model is not a decoder-only model.
    """

    def __init__(
        self,
        model: Any,
        sequences: Tensor,
        prompt_length: int,
        attributions: Tensor,
        attention_mask: Tensor | None,
        options: MetricOptions,
        removal: Removal,
    ):
        self._removal: Removal = choice("removal", removal, get_args(Removal))
        keep_last = removal != "zero"
        super().__init__(model, sequences, prompt_length, attributions, attention_mask, options, keep_last=keep_last)
        given = self._given(options.sources)
        self.num_sources = int(given.max()) + 1
        stays = ~self.removable | (given < 0)
        self._source_of = given.masked_fill(stays, self.num_sources)  # one more, which is never taken out
        self.present = sums_by_source(torch.ones_like(given), self._source_of, self.num_sources) > 0
        if not bool(self.present.any(dim=1).all()):
            raise InvalidInputError("A row has no source that may be taken out: all its positions are padding, `fixed`, or -1.")

    def log_probabilities_with(self, rows: Tensor, window: Window, kept: Tensor) -> Tensor:
        """Log-probabilities of the generated tokens of a window with some sources only, `[B, last - first]`.

        Args:
            rows: The row of each text, `[B]`.
            kept: True for sources that stay, `[B, G]`.
        """
        always = kept.new_ones(len(kept), 1)
        positions = torch.cat([kept, always], dim=1).gather(1, self._source_of[rows])
        return self.target_log_probabilities(rows, window, positions, self._removal)

    def shuffled(self) -> Tensor:
        """Random numbers that order equal scores, `[R, G]`, the same for all methods."""
        return torch.rand(self.num_rows, self.num_sources, generator=self.source).to(self.token_ids.device)

    def _scores(self, window: Window, rows: Tensor) -> Tensor:
        """Scores of the sources: the sums over their positions, `[..., r, G]`."""
        return sums_by_source(super()._scores(window, rows), self._source_of[rows], self.num_sources)

    def _given(self, sources: Tensor | None) -> Tensor:
        shape = self.removable.shape
        if sources is None:
            return torch.arange(shape[1], device=self.token_ids.device).expand(shape)
        expected = (
            f"`sources` must be a tensor of ints of shape [P] or [R, P], {list(shape[1:])} or {list(shape)}, of at least -1"
        )
        if not isinstance(sources, Tensor) or sources.shape not in (shape, shape[1:]):
            got = list(sources.shape) if isinstance(sources, Tensor) else type(sources).__name__
            raise InvalidInputError(f"{expected}, got {got}.")
        if sources.is_floating_point() or sources.is_complex() or sources.dtype == torch.bool:
            raise InvalidInputError(f"{expected}, got {sources.dtype}.")
        if not -1 <= int(sources.min()) <= int(sources.max()) < shape[1]:
            raise InvalidInputError(f"{expected} and below {shape[1]}, got {int(sources.min())} to {int(sources.max())}.")
        return sources.to(self.token_ids.device, torch.long).expand(shape)


def sums_by_source(x: Tensor, source_of: Tensor, num_sources: int) -> Tensor:
    """Sums of `x [..., P]` over the positions of each source, `[..., G]`.

    Args:
        source_of: The number of each position's source, broadcast to `[..., P]`; `num_sources` for positions that do not count.
    """
    sums = x.new_zeros(*x.shape[:-1], num_sources + 1)
    return sums.scatter_add(-1, source_of.expand(x.shape), x)[..., :-1]
