"""Prints the lowest versions that pyproject.toml allows, as constraints for pip: `make test-lowest` runs the tests with them.

`python -m scripts.lowest`, in an environment that has this package; its metadata is what is read.
"""

import re
from importlib.metadata import requires

_LOWEST = re.compile(r"(?P<name>[\w.-]+)(?:\[[^]]*\])?\s*(?:[^;]*,)?>=(?P<version>[\w.]+)")


def constraints(requirements: list[str]) -> list[str]:
    """A pin of each requirement that has a lowest version, sorted."""
    matches = map(_LOWEST.match, requirements)
    return sorted({f"{match['name']}=={match['version']}" for match in matches if match})


if __name__ == "__main__":
    print("\n".join(constraints(requires("gradellm-hf") or [])))
