"""Pictures in a prompt: where on them each token of an image lies, and how a processor reads them.

May import `text`, `checks` and `errors` only.
"""

from ..text.image_patches import ImagePatches

__all__ = ["ImagePatches"]
