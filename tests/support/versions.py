"""What tests have to know of the installed version of Transformers. What it lacks is skipped, and says so."""

import pytest
import transformers
from transformers.utils import ModelOutput

#: What this version calls the cache, in calls and in what they return.
CACHE = "cache" if hasattr(ModelOutput, "past_key_values") else "past_key_values"

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])


def since(version: str, what: str) -> pytest.MarkDecorator:
    """A mark: the test is skipped in versions before `version`, such as "5.17", which lack `what`."""
    needed = tuple(map(int, version.split(".")))
    return pytest.mark.skipif(needed > VERSION, reason=f"Transformers {transformers.__version__} has no {what}")
