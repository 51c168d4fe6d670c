"""Grad-ELLM explanations of what decoder-only language models write, for Hugging Face Transformers."""

import importlib
from typing import TYPE_CHECKING, Any

from model_patches import ArchitectureAdapter, register_adapter

from .configuration import GradELLMConfig
from .errors import GradELLMError, GradELLMWarning, InvalidInputError, UnsupportedArchitectureError
from .explanation import Explanation
from .generation import explain_generate, explain_sequences
from .model import GradELLM
from .outputs import ExplainGenerateOutput
from .verification import verify

if TYPE_CHECKING:
    from .dataset import explain_dataset
    from .dataset_explanations import load_dataset_explanations
    from .pipeline import ExplainedTextGenerationPipeline, register_pipeline
    from .streaming import explain_stream

__version__ = "0.1.0"

__all__ = [
    "ArchitectureAdapter",
    "ExplainGenerateOutput",
    "ExplainedTextGenerationPipeline",
    "Explanation",
    "GradELLM",
    "GradELLMConfig",
    "GradELLMError",
    "GradELLMWarning",
    "InvalidInputError",
    "UnsupportedArchitectureError",
    "explain_dataset",
    "explain_generate",
    "explain_sequences",
    "explain_stream",
    "load_dataset_explanations",
    "register_adapter",
    "register_pipeline",
    "verify",
]

#: What is imported when it is first asked for, by module: these need parts of Transformers that take long to import.
_LAZY = {
    "dataset": ("explain_dataset",),
    "dataset_explanations": ("load_dataset_explanations",),
    "pipeline": ("ExplainedTextGenerationPipeline", "register_pipeline"),
    "streaming": ("explain_stream",),
}


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
