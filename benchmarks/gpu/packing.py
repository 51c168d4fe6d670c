"""Weights as 4-bit checkpoints store them: random integers, scales and zeros in groups, packed; and the same, dequantised.

No calibration and no library of theirs is needed to make one, so a model can be loaded as any such checkpoint is, next to an
ordinary one with the same weights. A weight is `[out, in]`, `scale * (q - zero)` with `q` and `zero` from 0 to 15.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 128  # inputs that share a scale and a zero
_BITS, _PER_WORD = 4, 8
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours is in the lowest bits, the next ones, ...


@dataclass(frozen=True)
class Quantized:
    """`q` `[in, out]`, `zeros` and `scales` `[in / GROUP, out]`."""

    q: Tensor
    zeros: Tensor
    scales: Tensor

    def dequantized(self) -> Tensor:
        """`[out, in]`, as `nn.Linear` has it."""
        zeros, scales = (x.repeat_interleave(GROUP, dim=0) for x in (self.zeros, self.scales))
        return ((self.q - zeros).to(scales.dtype) * scales).T.contiguous()


def quantize(weight: Tensor) -> Quantized:
    """Rounds a weight `[out, in]` to 4 bits, with the range of each group of inputs; `in` is a multiple of `GROUP`."""
    groups = weight.float().T.unflatten(0, (-1, GROUP))
    low, high = groups.amin(1), groups.amax(1)
    scales = ((high - low) / (2**_BITS - 1)).half()
    zeros = (-low / scales.float()).round().clamp(1, 2**_BITS - 1)  # GPTQ stores zeros less one
    q = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 2**_BITS - 1)
    return Quantized(q.flatten(0, 1).to(torch.int32), zeros.to(torch.int32), scales)


def gptq_tensors(weight: Quantized) -> dict[str, Tensor]:
    """As GPTQ's checkpoints (version 1) name and pack them: `q` along the inputs, zeros less one along the outputs."""
    return {
        "qweight": pack(weight.q.T).T.contiguous(),
        "qzeros": pack(weight.zeros - 1),
        "scales": weight.scales,
        "g_idx": torch.arange(weight.q.shape[0], dtype=torch.int32) // GROUP,
    }


def awq_tensors(weight: Quantized) -> dict[str, Tensor]:
    """As AWQ's checkpoints (GEMM) name and pack them: both along the outputs, in an order of their own."""
    return {
        "qweight": pack(weight.q, _AWQ_ORDER),
        "qzeros": pack(weight.zeros, _AWQ_ORDER),
        "scales": weight.scales,
    }


def pack(values: Tensor, order: tuple[int, ...] = tuple(range(_PER_WORD))) -> Tensor:
    """Eight numbers of 4 bits along the last dimension in one int32: `[..., n] -> [..., n / 8]`."""
    words = values.to(torch.int64).unflatten(-1, (-1, _PER_WORD))[..., list(order)]
    packed = (words << (_BITS * torch.arange(_PER_WORD))).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
