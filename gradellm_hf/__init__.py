"""Grad-ELLM explanations of what decoder-only language models write, for Hugging Face Transformers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .architecture.adapters import ArchitectureAdapter, register_adapter
    from .calibration import calibrate
    from .configuration import GradELLMConfig, HeadWeights
    from .dataset import ExplainBatch, explain_dataset
    from .dataset.explanations import load_dataset_explanations
    from .errors import GradELLMError, GradELLMWarning, InvalidInputError, UnsupportedArchitectureError, UnsupportedVersionError
    from .generation import explain_generate, explain_sequences
    from .model import GradELLM
    from .pipeline import ExplainedImageTextToTextPipeline, ExplainedTextGenerationPipeline, register_pipeline
    from .results.explanation import Explanation
    from .results.output import ExplainGenerateOutput
    from .results.sources import Sources
    from .streaming import ExplainedStep, explain_stream
    from .verification import verify

__version__ = "0.1.0"

__all__ = [
    "ArchitectureAdapter",
    "ExplainBatch",
    "ExplainGenerateOutput",
    "ExplainedImageTextToTextPipeline",
    "ExplainedStep",
    "ExplainedTextGenerationPipeline",
    "Explanation",
    "GradELLM",
    "GradELLMConfig",
    "GradELLMError",
    "GradELLMWarning",
    "HeadWeights",
    "InvalidInputError",
    "Sources",
    "UnsupportedArchitectureError",
    "UnsupportedVersionError",
    "calibrate",
    "explain_dataset",
    "explain_generate",
    "explain_sequences",
    "explain_stream",
    "load_dataset_explanations",
    "register_adapter",
    "register_pipeline",
    "verify",
]

#: The module of each public name. It is imported when the name is first used, so `gradellm --help` does not wait for torch.
_MODULES = {
    ".architecture.adapters": ("ArchitectureAdapter", "register_adapter"),
    ".calibration": ("calibrate",),
    ".configuration": ("GradELLMConfig", "HeadWeights"),
    ".dataset": ("ExplainBatch", "explain_dataset", "load_dataset_explanations"),
    ".errors": (
        "GradELLMError",
        "GradELLMWarning",
        "InvalidInputError",
        "UnsupportedArchitectureError",
        "UnsupportedVersionError",
    ),
    ".results.explanation": ("Explanation",),
    ".generation": ("explain_generate", "explain_sequences"),
    ".model": ("GradELLM",),
    ".results.output": ("ExplainGenerateOutput",),
    ".results.sources": ("Sources",),
    ".pipeline": ("ExplainedImageTextToTextPipeline", "ExplainedTextGenerationPipeline", "register_pipeline"),
    ".streaming": ("ExplainedStep", "explain_stream"),
    ".verification": ("verify",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
