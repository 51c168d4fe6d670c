"""The logits from which `generate` chose its tokens. Those of the explanation are compared with them.

All of them would be large (`N * V` per row). So at each position a sample is kept: the logits of tokens that are spread evenly
over the vocabulary, and the largest logit. This costs two small operations per new token.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..architecture.tolerances import WRITTEN_LOGITS, logits_differences
from ..errors import InvalidInputError

_SAMPLED_TOKENS = 128  # by hand: half a KiB per token, little beside its keys and values; a wrong call changes all logits


class LogitsDifferError(InvalidInputError):
    """The model did not compute again what it had computed in `generate`.

    Attributes:
        step: The first such step.
        difference: The difference of its logits, relative to the largest.
    """

    def __init__(self, step: int, difference: float):
        self.step, self.difference = step, difference
        super().__init__(
            f"The explanation's logits of new token {step} (counted from 0) differ from those in `generate` by "
            f"{difference:.1e} of their size: something in that call was not the same when the model ran again (hooks, random "
            "numbers, `position_ids` with gaps and no cache, ...). Leave it out, or explain the text with `explain_sequences`."
        )


@dataclass(frozen=True)
class WrittenLogits:
    """Sampled logits of the steps that were seen.

    Attributes:
        samples: Of the first `n` steps, `[R, n, K]`; steps that were not seen have any value.
        seen: Which of these steps were seen, `[n]` bool.
        is_rounded: Whether the model, or the cache that it computed them with, is quantised: then they are only close.
    """

    samples: Tensor
    seen: Tensor
    is_rounded: bool

    def after(self, num_steps: int) -> "WrittenLogits":
        """Without the first `num_steps` steps."""
        return replace(self, samples=self.samples[:, num_steps:], seen=self.seen[num_steps:])

    def check(self, first: int, logits: Tensor, step_mask: Tensor, first_step: int) -> None:
        """Compares the logits `[R, N, V]` of the steps from `first` on with these, at the steps that `step_mask` `[R, N]` has.

        Args:
            first_step: The number of the first sampled step in the whole text, for the error.

        Raises:
            LogitsDifferError: They differ by more than rounding.
        """
        expected = self.samples[:, first : first + logits.shape[1]].to(logits.device)
        num_steps = expected.shape[1]
        compared = step_mask[:, :num_steps] & self.seen[first : first + num_steps].to(step_mask.device)
        compared = compared.to(logits.device) & (expected < torch.inf).all(-1)  # NaN has an error of its own
        differences = logits_differences(sample(logits[:, :num_steps].detach()), expected)
        tolerance = WRITTEN_LOGITS.of(logits.dtype, quantized=self.is_rounded)
        for step, difference in enumerate(differences.masked_fill(~compared, 0).amax(0).tolist(), first):
            if not difference <= tolerance:
                raise LogitsDifferError(first_step + step, difference)


class LogitsRecording:
    """Samples of the logits that the calls of a model compute, by position. If one is computed twice, the last one counts.

    Calls belong together if they use the same cache. The model may also be called for a draft or with another prompt, and
    each of these has a cache of its own.

    Args:
        first: The first position of interest.
    """

    def __init__(self, first: int):
        self._first = first
        self._by_cache: list[tuple[Callable[[], Any], dict[int, Tensor]]] = []  # caches are held weakly

    def add(self, cache: Any, end: int, logits: Tensor) -> None:
        """Takes in the logits of the last positions of a call, `[rows, n, V]`; `end` is the position after the last one."""
        samples = sample(logits[:, max(0, logits.shape[1] - (end - self._first)) :].detach())
        positions = self._positions(cache)
        if positions is None:
            positions = {}
            self._by_cache.append((_no_cache if cache is None else weakref.ref(cache), positions))
        first = end - samples.shape[1]
        positions.update((first + place, x) for place, x in enumerate(samples.unbind(1)))

    def written(self, cache: Any, rows: Tensor, num_rows: int, is_rounded: bool) -> WrittenLogits | None:
        """What calls of `num_rows` rows computed; None if there were none.

        Args:
            cache: The cache that they used. None: they had none, or those with the first cache are meant.
            rows: For each row and step, the row of the call that computed it, `[R, N]`; it may have fewer steps.
            is_rounded: See `WrittenLogits`.
        """
        positions = self._positions(cache)
        if positions is None:
            positions = self._by_cache[0][1] if cache is None and self._by_cache else {}
        recorded = {n: positions[self._first + n] for n in range(rows.shape[1]) if self._first + n in positions}
        seen = {n: x for n, x in recorded.items() if len(x) == num_rows}
        if not seen:
            return None
        example = next(iter(seen.values()))
        samples = example.new_zeros(*rows.shape, example.shape[-1])
        for n, x in seen.items():
            samples[:, n] = x[rows[:, n].to(x.device)]
        return WrittenLogits(samples, torch.tensor([n in seen for n in range(rows.shape[1])]), is_rounded)

    def _positions(self, cache: Any) -> dict[int, Tensor] | None:
        for known, positions in self._by_cache:
            is_same = known is _no_cache if cache is None else known() is cache
            if is_same:
                return positions
        return None


def _no_cache() -> None:
    """Stands for the cache of calls without one."""


def sample(logits: Tensor) -> Tensor:
    """The logits of `K - 1` tokens spread over the vocabulary, and the largest: `[..., V] -> [..., K]`."""
    step = max(1, logits.shape[-1] // _SAMPLED_TOKENS)
    return torch.cat([logits[..., ::step], logits.amax(-1, keepdim=True)], dim=-1).float()
