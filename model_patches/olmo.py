"""OLMo 1 to 3 and their mixtures of experts. Norms of queries and keys come after the projections."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("olmo", "olmo2", "olmo3", "olmoe", "flex_olmo"))
