"""Falcon in its three versions: as many keys and values as queries, one for all queries, or one for each group of them."""

from .adapter import ArchitectureAdapter
from .fused import group_by_group

ADAPTER = ArchitectureAdapter(
    model_types=("falcon",),
    decoder_layers="transformer.h",
    attention="self_attention",
    output_projection="dense",
    fused="query_key_value",
    split_fused=group_by_group,
)
