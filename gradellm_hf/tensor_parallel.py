"""Models whose attention heads are spread over processes (Transformers' `DistributedConfig(tp_plan=...)`).

Every process of the group runs the same explanation. A layer's heatmap is a sum over heads, of which each process has its
own: the sums are added up over the processes before the relu. Some plans split weights and put the heads together again
before the attention; then every process has the whole sum. What tells the two apart is the width of the head outputs.

All processes must do the same, or they wait for each other forever: what depends on one process, they agree on.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import GradELLMError, UnsupportedArchitectureError


def tensor_parallel_group(module: nn.Module) -> Any | None:
    """The process group over which weights of a module, or model, are split by tensor parallelism; None where they are not."""
    for weight in module.parameters():
        if (mesh := getattr(weight, "device_mesh", None)) is None:
            continue
        if mesh.mesh_dim_names is None:
            return mesh.get_group()
        return mesh.get_group("tp") if "tp" in mesh.mesh_dim_names else None
    return None


def head_group(attention: nn.Module, width: int) -> Any | None:
    """The process group over which the heads of an attention module are spread; None where each process has all of them.

    Args:
        attention: The attention module.
        width: Channels of its head outputs in this process, over all heads, `H * D`.
    """
    modules: Iterable[Any] = attention.modules()
    widths = [module.in_features for module in modules if _is_split_by_input(module)]  # the output projection's is the largest
    return _group_of_parts(attention, width, max(widths, default=width))


def sum_over_heads(heatmap: Tensor, group: Any | None) -> Tensor:
    """The sum of the heatmaps of all processes of the group."""
    if group is not None:
        heatmap = heatmap.contiguous()
        torch.distributed.all_reduce(heatmap, group=group)
    return heatmap


def gather_heads(output: Tensor, projection: nn.Module) -> Tensor:
    """What a projection puts out in all processes, `[R, N, C]`, side by side, as one process would put it out."""
    width = output.shape[-1]
    group = _group_of_parts(projection, width, getattr(projection, "out_features", width))
    if group is None:
        return output
    parts = [torch.empty_like(output) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, output.contiguous(), group=group)
    return torch.cat(parts, dim=-1)


def smallest(value: int, group: Any | None) -> int:
    """The smallest of the processes' values."""
    if group is None:
        return value
    return min(_of_all_processes(value, group))


def first_reason(reason: str | None, group: Any | None) -> str | None:
    """What the first process that has a reason gives; None where none has."""
    if group is None:
        return reason
    return next((given for given in _of_all_processes(reason, group) if given is not None), None)


def out_of_memory_in_group(num_steps: int) -> GradELLMError:
    """The error where one of several processes runs out of memory, while the others wait for its part of the heads."""
    return GradELLMError(
        f"Out of memory while explaining {num_steps} steps at once, in one of the processes that share the model. They cannot "
        f"start over with fewer: set a smaller `GradELLMConfig(step_chunk_size=...)`, below {num_steps}."
    )


def _of_all_processes(value: Any, group: Any) -> list[Any]:
    values = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(values, value, group=group)
    return values


def _group_of_parts(module: nn.Module, width: int, full_width: int) -> Any | None:
    if width == full_width:
        return None
    group = tensor_parallel_group(module)
    if group is None or width * torch.distributed.get_world_size(group) != full_width:
        raise UnsupportedArchitectureError(
            f"{type(module).__name__} has {width} of {full_width} channels in this process, but its weights are not split over "
            'equal processes of a device mesh, or of its dimension "tp". Load the model with Transformers\' '
            '`distributed_config=DistributedConfig(tp_plan="auto")` and a number of processes that divides its heads.'
        )
    return group


def _is_split_by_input(module: nn.Module) -> bool:
    weight: Any = getattr(module, "weight", None)
    is_split = isinstance(weight, Tensor) and hasattr(weight, "placements")
    return is_split and any(x.is_shard() and x.dim in (-1, weight.ndim - 1) for x in weight.placements) and weight.ndim > 1
