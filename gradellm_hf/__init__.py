"""Grad-ELLM explanations of what decoder-only language models write, for Hugging Face Transformers."""

from model_patches import ArchitectureAdapter, register_adapter

from .configuration import GradELLMConfig
from .errors import GradELLMError, GradELLMWarning, InvalidInputError, UnsupportedArchitectureError
from .generation import explain_generate, explain_sequences
from .outputs import ExplainGenerateOutput
from .verification import verify

__version__ = "0.1.0"

__all__ = [
    "ArchitectureAdapter",
    "ExplainGenerateOutput",
    "GradELLMConfig",
    "GradELLMError",
    "GradELLMWarning",
    "InvalidInputError",
    "UnsupportedArchitectureError",
    "explain_generate",
    "explain_sequences",
    "register_adapter",
    "verify",
]
