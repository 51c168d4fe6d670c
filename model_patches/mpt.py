"""MPT. Some checkpoints clip the output of the projection. The adapter names the projection, so it gives the unclipped one."""

from .adapter import ArchitectureAdapter
from .fused import side_by_side

ADAPTER = ArchitectureAdapter(
    model_types=("mpt",),
    decoder_layers="transformer.blocks",
    attention="attn",
    output_projection="out_proj",
    fused="Wqkv",
    split_fused=side_by_side,
)
