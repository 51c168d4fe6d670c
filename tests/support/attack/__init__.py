"""Attacks the public surface with bad inputs and damaged files, and says what came of each: see `__main__`."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before Transformers is imported: no model hub is needed
