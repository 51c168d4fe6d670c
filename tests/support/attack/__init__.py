"""Attacks the public surface with bad inputs and damaged files, and says what came of each: see `__main__`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before Transformers is imported: no model hub is needed
sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests import their helpers by name, as pytest lets them
