"""Models that are spread over processes, by heads (Transformers' `DistributedConfig(tp_plan=...)`) or by weights.

Every process runs the same explanation. A layer's heatmap is a sum over heads, and each process of a tensor-parallel group has
some of the heads: their sums are added up over the processes, before the relu. Some plans split weights and put the heads
together again before the attention. Then every process has the whole sum. The width of the head outputs tells the two cases
apart. FSDP2, DeepSpeed's ZeRO-3 and expert parallelism split weights only, and put them together when a module runs.

All processes must do the same, or they wait for each other forever. So they agree on everything that depends on one process.
Models that are spread in a way in which this is not possible are refused in every process, before any of them waits.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import GradELLMError, InvalidInputError, UnsupportedArchitectureError

Value = TypeVar("Value")

_OTHERWISE = (
    'Spread its layers over devices in one process (`device_map="auto"`), its heads over processes '
    '(`distributed_config=DistributedConfig(tp_plan="auto")`), or its weights (FSDP2: `fully_shard`; DeepSpeed ZeRO-3).'
)


def check_distribution(model: Any) -> None:
    """Refuses models that are spread over processes in a way that cannot be explained. Asks no other process.

    Raises:
        UnsupportedArchitectureError: Its layers are in different processes (a pipeline), its weights are flattened (FSDP1),
            its heads are split by another library than Transformers, or their number does not divide.
    """
    if hasattr(model, "_pp_stage") or hasattr(model, "pippy_stage"):  # set by Transformers; by accelerate's `prepare_pippy`
        raise UnsupportedArchitectureError(
            "The model's layers are spread over processes (pipeline parallelism), so no process has the gradients of all of "
            f"them. {_OTHERWISE}"
        )
    is_wrapped = any(hasattr(module, "_fsdp_wrapped_module") for module in model.modules())
    if is_wrapped or any(getattr(weight, "_fsdp_flattened", False) for weight in model.parameters()):
        raise UnsupportedArchitectureError(
            "The model's weights are flattened and split over processes by `FullyShardedDataParallel` (FSDP1), through which "
            f"`generate` and gradients of single layers do not go. {_OTHERWISE}"
        )
    if any(getattr(weight, "tensor_model_parallel", False) for weight in model.parameters()):
        raise UnsupportedArchitectureError(
            "The model's heads are spread over processes by DeepSpeed or Megatron, which do not say which process has which. "
            f"{_OTHERWISE}"
        )
    _check_heads_divide(model)


def check_same_text(model: nn.Module, token_ids: Tensor, prompt_length: int, num_steps: int) -> None:
    """Compares what the processes that share a model are about to explain.

    Raises:
        InvalidInputError: They would not run the model alike: they have different numbers of tokens, or different tokens and
            share its heads. It is raised in every process.
    """
    groups = sharing_groups(model)
    if not groups:
        return
    group = tensor_parallel_group(model)
    same_tokens = group is None or _is_common(token_ids.tolist(), [group])
    if not _is_common((prompt_length, num_steps, same_tokens), groups) or not same_tokens:
        raise InvalidInputError(
            "The processes that share the model have different texts to explain, so they would not run it alike. Make the "
            "same call in all of them, and before sampling seed all alike (`torch.manual_seed(0)`). If they share only "
            "weights (FSDP2, ZeRO-3), the prompts may differ, but not their lengths and not the numbers of new tokens."
        )


def sharing_groups(model: nn.Module) -> list[Any]:
    """The process groups over which weights of a model are split, by any means: their processes run it together."""
    groups: dict[tuple[int, ...], Any] = {}
    for weight in model.parameters():
        for group in _splitting_groups(weight):
            groups.setdefault(tuple(torch.distributed.get_process_group_ranks(group)), group)
    return list(groups.values())


def tensor_parallel_group(module: nn.Module) -> Any | None:
    """The process group over which tensor parallelism splits weights of a module, or model; None if it splits none."""
    for mesh in filter(None, (getattr(weight, "device_mesh", None) for weight in module.parameters())):
        if "tp" in (mesh.mesh_dim_names or ()):
            return mesh.get_group("tp")
        if mesh.mesh_dim_names is None and any(map(_is_split_by_input, module.modules())):  # FSDP2 splits by output
            return mesh.get_group()
    return None


def head_group(attention: nn.Module, width: int) -> Any | None:
    """The process group over which the heads of an attention module are spread; None if each process has all of them.

    Args:
        attention: The attention module.
        width: Channels of its head outputs in this process, over all heads, `H * D`.
    """
    modules: Iterable[Any] = attention.modules()
    widths = [module.in_features for module in modules if _is_split_by_input(module)]  # the output projection's is the largest
    return _group_of_parts(attention, width, max(widths, default=width))


def first_head(group: Any | None, num_heads: int) -> int:
    """The number of the first head of this process, if each process of the group has so many."""
    return 0 if group is None else torch.distributed.get_rank(group) * num_heads


def sum_over_heads(heatmap: Tensor, group: Any | None) -> Tensor:
    """The sum of the heatmaps of all processes of the group."""
    if group is not None:
        heatmap = heatmap.contiguous()
        torch.distributed.all_reduce(heatmap, group=group)
    return heatmap


def gather_heads(output: Tensor, projection: nn.Module) -> Tensor:
    """The whole output of a projection, `[R, N, C]`, from the parts of it that the processes have."""
    width = output.shape[-1]
    group = _group_of_parts(projection, width, getattr(projection, "out_features", width))
    if group is None:
        return output
    parts = [torch.empty_like(output) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, output.contiguous(), group=group)
    return torch.cat(parts, dim=-1)


def smallest(value: int, groups: list[Any]) -> int:
    """The smallest of the processes' values."""
    return _agreed(min, value, groups)


def of_all_processes(numbers: list[int], groups: list[Any]) -> list[int]:
    """The numbers that some process has, ascending."""
    return _agreed(lambda lists: sorted(set().union(*lists)), numbers, groups)


def first_reason(reason: str | None, groups: list[Any]) -> str | None:
    """The reason of the first process that has one; None if none has."""
    return _agreed(lambda reasons: next((given for given in reasons if given is not None), None), reason, groups)


def out_of_memory_in_group(num_steps: int) -> GradELLMError:
    """The error if one of several processes runs out of memory while the others wait for it."""
    return GradELLMError(
        f"Out of memory while explaining {num_steps} steps at once, in one of the processes that share the model. They cannot "
        f"start over with fewer: set a smaller `GradELLMConfig(step_chunk_size=...)`, below {num_steps}."
    )


def _agreed(choose: Callable[[list[Value]], Value], value: Value, groups: list[Any]) -> Value:
    """One value that all processes take, chosen from theirs. The groups are the lines of a grid, so one after the other."""
    for group in groups:
        values = [value] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(values, value, group=group)
        value = choose(values)
    return value


def _is_common(value: Any, groups: list[Any]) -> bool:
    """Whether all processes have the same value, which is not None."""
    return _agreed(_common, value, groups) is not None


def _common(values: list[Any]) -> Any | None:
    """The value if all are the same; else None."""
    return values[0] if all(value == values[0] for value in values) else None


def _splitting_groups(weight: Any) -> list[Any]:
    if hasattr(weight, "ds_process_group"):  # DeepSpeed ZeRO-3
        return [weight.ds_process_group]
    placements = enumerate(getattr(weight, "placements", ()))  # of a DTensor
    return [weight.device_mesh.get_group(dim) for dim, placement in placements if not placement.is_replicate()]


def _check_heads_divide(model: Any) -> None:
    """Transformers splits projections by rows, whether or not a head ends there."""
    plan = getattr(model, "tp_plan", None) or {}
    splits_heads = any(style == "colwise" and "att" in name.rpartition(".")[0] for name, style in plan.items())
    group = tensor_parallel_group(model) if splits_heads else None
    if group is None:
        return
    config, processes = model.config.get_text_config(decoder=True), torch.distributed.get_world_size(group)
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None)
        if any(count % processes for count in (heads if isinstance(heads, list | tuple) else [heads or 0])):
            raise UnsupportedArchitectureError(
                f"The model's heads are spread over {processes} processes, but `{name}` is {heads}, which that does not "
                "divide: Transformers cannot run it so. Use a number of processes that divides it, or give the attention's "
                'projections the style "colwise_gather_output" and its output projection "rowwise_split_input" in '
                "`DistributedConfig(tp_plan=...)`."
            )


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
