"""Command R: attention and MLP side by side in a layer, and in some sizes norms of queries and keys."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("cohere", "cohere2", "cohere2_moe"))
