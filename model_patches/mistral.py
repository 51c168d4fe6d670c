"""Mistral: Llama's layout, with a sliding window in some versions (the masks carry it; nothing to name here)."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("mistral",))
