"""MPT. Some checkpoints clip what the projection puts out; named here is what it puts out."""

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
