"""How far two computations of the same thing are apart."""

import torch
from torch import Tensor

#: A token whose logit is that far below the largest one has probability 0, even in float64.
_IMPOSSIBLE = 750.0


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """`max |actual - expected| / max |expected|`; 0 where they are equal, also where both are 0 or empty; NaN of NaN."""
    if not actual.numel():
        return 0.0
    largest = (actual - expected).abs().max()
    return (largest if largest in (0, torch.inf) else largest / expected.abs().max()).item()


def logits_difference(actual: Tensor, expected: Tensor) -> float:
    """The relative difference of two computations of the same logits, `[..., V]`.

    Tokens that are impossible in both (logits of minus infinity, or suppressed by any other large number) are equal, and do
    not count in what the difference is relative to. It is infinite where a token is at minus infinity in one of them only,
    and NaN where NaN, plus infinity, or minus infinity for every token makes them meaningless.

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
