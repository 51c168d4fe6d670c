"""A text whose heatmaps are measured by perturbing its prompt: the common part of all metrics that do so."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..checks.arguments import checked_generator
from ..errors import InvalidInputError
from .options import MetricOptions
from .perturbation import PerturbedText, Window, masked_mean


class MeasuredText(PerturbedText):
    """A `PerturbedText` with its heatmaps and the options of a metric. Shape letters as there.

    Args:
        model, sequences, prompt_length, attention_mask: As for `PerturbedText`.
        attributions: Heatmaps `[R, N, S]`, or of several methods `[M, R, N, S]`.
        options: How they are measured.
        keep_last: Never take out the last position of the prompt, from which the first token is predicted.

    Attributes:
        attributions, options: As given.
        source: Of random numbers.

    Raises:
        InvalidInputError: As for `PerturbedText`; or the heatmaps are not finite, or not of this text.
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
        *,
        keep_last: bool = False,
    ):
        perturbing: dict[str, Any] = {"fixed": options.fixed, "keep_last": keep_last, "batch_size": options.batch_size}
        super().__init__(model, sequences, prompt_length, attention_mask, **perturbing)
        self._check(attributions)
        self.attributions, self.options = attributions, options
        self.source = checked_generator(options.generator)

    def mean_over_windows(self, measure: Callable[[Window, Tensor, Tensor], Tensor]) -> Tensor:
        """Mean of a metric over the windows in which each row's generated tokens are measured: one by one, or all together.

        Args:
            measure: From a window, the `r` rows that have it, and their scores of the prompt's positions `[..., r, P]` to
                values `[..., r]`; NaN if undefined.

        Returns:
            `[..., R]`, float64; NaN for rows without any defined value.
        """
        return torch.stack(list(self._by_window(measure))).nanmean(dim=0)

    def _by_window(self, measure: Callable[[Window, Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
        for window in self._windows():
            rows = self.step_mask[:, window.first : window.last].any(dim=1).nonzero()[:, 0]
            if len(rows):
                values = measure(window, rows, self._scores(window, rows)).double()
                full = values.new_full((*values.shape[:-1], self.num_rows), torch.nan)
                yield full.index_copy(-1, rows, values)

    def _windows(self) -> list[Window]:
        if self.options.level == "sequence":
            return [Window(0, self.num_steps)]
        return [Window(step, step + 1) for step in range(self.num_steps)]

    def _scores(self, window: Window, rows: Tensor) -> Tensor:
        """Scores of the prompt's positions, mean over the steps of a window, `[..., r, P]`, float64; 0 if not removable."""
        steps = slice(window.first, window.last)
        a = self.attributions[..., steps, : self.prompt_length].to(self.token_ids.device, torch.float64)[..., rows, :, :]
        return masked_mean(a.transpose(-1, -2), self.step_mask[rows, None, steps]).masked_fill(~self.removable[rows], 0)

    def _check(self, attributions: Any) -> None:
        expected = (self.num_rows, self.num_steps, self.token_ids.shape[1])
        if not isinstance(attributions, Tensor) or attributions.shape[-3:] != expected:
            got = list(attributions.shape) if isinstance(attributions, Tensor) else type(attributions).__name__
            raise InvalidInputError(
                f"`attributions` must have shape [..., R, N, S] = [..., {str(list(expected))[1:]}, got {got}."
            )
        if not attributions.isfinite().all():
            raise InvalidInputError("`attributions` holds values that are not finite.")
