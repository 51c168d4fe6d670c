"""StableLM: RoPE on a part of each head, and in some sizes norms of queries and keys head by head."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("stablelm",))
