"""SmolLM3: Llama's layout; every fourth layer goes without RoPE."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("smollm3",))
