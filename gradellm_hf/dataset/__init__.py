"""Many prompts explained: into a folder, or in the rows of an engine. May import everything below it."""

from .explain_batch import ExplainBatch
from .explanations import DatasetExplanations, load_dataset_explanations
from .job import explain_dataset

__all__ = ["DatasetExplanations", "ExplainBatch", "explain_dataset", "load_dataset_explanations"]
