"""Bloom. Positions are added to the scores (ALiBi), so queries and keys are used as they are projected."""

from .adapter import ArchitectureAdapter
from .fused import head_by_head

ADAPTER = ArchitectureAdapter(
    model_types=("bloom",),
    decoder_layers="transformer.h",
    attention="self_attention",
    output_projection="dense",
    fused="query_key_value",
    split_fused=head_by_head,
)
