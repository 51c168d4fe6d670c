"""Gemma 1 to 4. In versions 3n and 4 the last layers may reuse the keys and values of earlier ones and then project none."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(
    model_types=("gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text", "vaultgemma")
)
