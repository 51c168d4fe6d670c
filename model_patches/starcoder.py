"""StarCoder 1 (gpt_bigcode: GPT-2 with one key and value for all queries) and 2."""

from .adapter import ArchitectureAdapter
from .fused import group_by_group

GPT_BIGCODE = ArchitectureAdapter(
    model_types=("gpt_bigcode",),
    decoder_layers="transformer.h",
    attention="attn",
    output_projection="c_proj",
    fused="c_attn",
    split_fused=group_by_group,
)
STARCODER2 = ArchitectureAdapter(model_types=("starcoder2",))
