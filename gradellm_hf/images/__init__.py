"""Pictures in a prompt: where on them each token of an image lies, and how a processor reads them.

May import `checks` and `errors` only.
"""

from .patches import ImagePatches

__all__ = ["ImagePatches"]
