"""Models whose attention heads are spread over processes (Transformers' `DistributedConfig(tp_plan=...)`).

Every process of the group runs the same explanation. A layer's heatmap is a sum over heads, of which each process has its
own: the sums are added up over the processes before the relu. What is not split by heads is the same in all processes.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def head_group(attention: nn.Module) -> Any | None:
    """The process group over which the heads of an attention module are spread; None where each process has all of them."""
    weights: Iterable[Any] = attention.parameters()
    mesh = next((weight.device_mesh for weight in weights if _is_split(weight)), None)
    if mesh is None:
        return None
    return mesh.get_group() if mesh.ndim == 1 else mesh.get_group("tp")


def sum_over_heads(heatmap: Tensor, group: Any | None) -> Tensor:
    """The sum of the heatmaps of all processes of the group."""
    if group is not None:
        heatmap = heatmap.contiguous()
        torch.distributed.all_reduce(heatmap, group=group)
    return heatmap


def gather_heads(projected: Tensor, group: Any | None) -> Tensor:
    """What the projections of all processes put out, `[R, N, C]`, side by side: heads in order."""
    if group is None:
        return projected
    parts = [torch.empty_like(projected) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, projected.contiguous(), group=group)
    return torch.cat(parts, dim=-1)


def _is_split(weight: Any) -> bool:
    return hasattr(weight, "device_mesh") and any(placement.is_shard() for placement in weight.placements)
