"""What tests share: small models, texts, slow references, and processes that tests start."""

from pathlib import Path

SUPPORT = Path(__file__).parent
#: Of the project. Processes that tests start run there, or have it on their path, to import the tests' helpers.
ROOT = SUPPORT.parents[1]
