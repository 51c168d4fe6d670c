"""Many prompts explained into a folder, in one process or several. May import everything below it."""

from .explanations import DatasetExplanations, load_dataset_explanations
from .job import explain_dataset

__all__ = ["DatasetExplanations", "explain_dataset", "load_dataset_explanations"]
