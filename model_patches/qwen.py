"""Qwen2 and Qwen3, dense, mixture-of-experts and those that read images. Norms of queries and keys follow the projections."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(
    model_types=(
        *("qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_5_vl_text"),
        *("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text"),
    )
)
