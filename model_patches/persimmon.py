"""Persimmon. Norms of queries and keys come after the projection."""

from .adapter import ArchitectureAdapter
from .fused import head_by_head

ADAPTER = ArchitectureAdapter(
    model_types=("persimmon",), output_projection="dense", fused="query_key_value", split_fused=head_by_head
)
