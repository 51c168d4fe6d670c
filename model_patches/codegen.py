"""CodeGen. Its projection was once spread over four cores, and is still interleaved: each core has queries, values, keys."""

from torch import Tensor, nn

from .adapter import ArchitectureAdapter

_CORES = 4


def _core_by_core(output: Tensor, attention: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    query, value, key = output.unflatten(-1, (_CORES, 3, -1)).unbind(-2)
    return query.flatten(-2), key.flatten(-2), value.flatten(-2)


ADAPTER = ArchitectureAdapter(
    model_types=("codegen",),
    decoder_layers="transformer.h",
    attention="attn",
    output_projection="out_proj",
    fused="qkv_proj",
    split_fused=_core_by_core,
)
