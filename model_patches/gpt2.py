"""GPT-2: one convolution computes query, key and value, side by side."""

from torch import Tensor, nn

from .adapter import ArchitectureAdapter


def _split(output: Tensor, attention: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = output.chunk(3, dim=-1)
    return query, key, value


ADAPTER = ArchitectureAdapter(
    model_types=("gpt2",),
    decoder_layers="transformer.h",
    attention="attn",
    output_projection="c_proj",
    fused="c_attn",
    split_fused=_split,
)
