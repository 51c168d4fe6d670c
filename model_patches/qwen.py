"""Qwen2 and Qwen3, dense and mixture-of-experts. Qwen3's norms of queries and keys come after the projections."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"))
