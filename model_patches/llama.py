"""Llama 1 to 3, and the many models that are Llamas in all but name."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("llama",))
