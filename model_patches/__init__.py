"""Where things are in each architecture: one small declaration per family, no mechanism, no change to model code.

May import nothing of `gradellm_hf`.
"""

from .adapter import ArchitectureAdapter
from .registry import find_adapter, register_adapter, registered_adapters

__all__ = ["ArchitectureAdapter", "find_adapter", "register_adapter", "registered_adapters"]
