"""For families without a file of their own: the names that most of them use."""

from .adapter import ArchitectureAdapter

GENERIC = ArchitectureAdapter(model_types=())
