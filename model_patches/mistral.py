"""Mistral, Ministral and Mixtral: Llama's layout, with a sliding window in some (the masks carry it)."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("mistral", "ministral", "ministral3", "mixtral"))
