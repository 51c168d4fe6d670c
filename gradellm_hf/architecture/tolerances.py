"""How much two computations of the same thing differ, and how much they may differ."""

from dataclasses import dataclass

import torch
from torch import Tensor

#: A token whose logit is so far below the largest one has probability 0, even in float64 (`exp(-746)` is 0 there).
_IMPOSSIBLE = 750.0


@dataclass(frozen=True)
class Tolerance:
    """How much two computations of the same thing may differ, relative to its largest value.

    The numbers are multiples of each dtype's precision (`torch.finfo(dtype).eps`: 7.8e-3, 9.8e-4, 1.2e-7). They are larger than
    what was seen with any architecture of the survey, and far smaller than what a wrong mask, scale or position does (tenths
    and more).

    Attributes:
        bfloat16, float16: In these dtypes.
        wider: In float32 and float64.
        quantized: If weights or cache are quantised.
    """

    bfloat16: float
    float16: float
    wider: float
    quantized: float = float("nan")

    def of(self, dtype: torch.dtype, *, quantized: bool = False) -> float:
        """The tolerance for what was computed in a dtype."""
        if quantized:
            return self.quantized
        return {torch.bfloat16: self.bfloat16, torch.float16: self.float16}.get(dtype, self.wider)


#: One product of weights and values, computed a second time: three or four units in the last place in half precision. In
#: float32, kernels may add up in TF32 or in blocks, so it is a thousand units.
HEAD_OUTPUTS = Tolerance(bfloat16=3e-2, float16=3e-3, wider=1e-4)
#: A whole model's logits, several tokens at once against one at a time: kernels of other shapes round differently, in every
#: layer. Dynamic quantisation depends on what else is in a call.
REPLAYED_LOGITS = Tolerance(bfloat16=5e-2, float16=1e-2, wider=1e-3, quantized=2e-1)
#: The same for every step of a long text, of which the worst one counts, with caches and devices of any kind.
WRITTEN_LOGITS = Tolerance(bfloat16=1e-1, float16=2e-2, wider=5e-3, quantized=2e-1)
#: A whole model's logits from other kernels, which round in other places (flash attention; other releases).
OTHER_KERNELS = Tolerance(bfloat16=1e-1, float16=2e-2, wider=1e-3)
#: The heatmaps of one engine against the other's, all layers: gradients in half precision have few digits.
HEATMAPS = Tolerance(bfloat16=1e-1, float16=1e-1, wider=1e-3)


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """`max |actual - expected| / max |expected|`; 0 if they are equal, also if both are 0 or empty; NaN if one has NaN."""
    if not actual.numel():
        return 0.0
    largest = (actual - expected).abs().max()
    return (largest if largest in (0, torch.inf) else largest / expected.abs().max()).item()


def logits_difference(actual: Tensor, expected: Tensor) -> float:
    """The relative difference of two computations of the same logits, `[..., V]`.

    Tokens that are impossible in both (logits of minus infinity, or suppressed by any other large number) are equal, and do
    not count in the size that the difference is relative to. It is infinite if a token is at minus infinity in one of them
    only. It is NaN if the logits mean nothing: they hold NaN, plus infinity, or minus infinity for every token.

    Args:
        actual: On any device, in any floating dtype.
        expected: Of the same shape, on any device, in any floating dtype.
    """
    return relative_difference(*_comparable(actual, expected))


def logits_differences(actual: Tensor, expected: Tensor) -> Tensor:
    """The same of each vector of logits by itself, `[..., V] -> [...]`."""
    actual, expected = _comparable(actual, expected)
    difference, largest = (actual - expected).abs().amax(-1), expected.abs().amax(-1)
    return torch.where((difference == 0) | difference.isinf(), difference, difference / largest)


def _comparable(actual: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, on one device, and 0 for tokens that are impossible in both."""
    if not actual.numel():
        return actual, expected
    dtype = torch.promote_types(torch.promote_types(actual.dtype, expected.dtype), torch.float32)
    actual = actual.detach().to(dtype)
    expected = expected.detach().to(actual.device, dtype)
    impossible = _is_impossible(actual) & _is_impossible(expected)
    return actual.masked_fill(impossible, 0), expected.masked_fill(impossible, 0)


def _is_impossible(logits: Tensor) -> Tensor:
    return logits < logits.amax(-1, keepdim=True) - _IMPOSSIBLE
