"""Transformers' pipelines, with an explanation in each result.

May import `generation`, `results`, `sequences`, `architecture`, `images`, `text`, `configuration`, `checks` and `errors`.
"""

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.pipelines import PIPELINE_REGISTRY

from .image_text_to_text import ExplainedImageTextToTextPipeline
from .text_generation import ExplainedTextGenerationPipeline

__all__ = ["IMAGE_TASK", "TASK", "ExplainedImageTextToTextPipeline", "ExplainedTextGenerationPipeline", "register_pipeline"]

TASK, IMAGE_TASK = "explained-text-generation", "explained-image-text-to-text"
_TASKS: dict[str, tuple[type, Any, str]] = {
    TASK: (ExplainedTextGenerationPipeline, AutoModelForCausalLM, "text"),
    IMAGE_TASK: (ExplainedImageTextToTextPipeline, AutoModelForImageTextToText, "multimodal"),
}


def register_pipeline() -> None:
    """Makes the tasks `"explained-text-generation"` and `"explained-image-text-to-text"` known to `transformers.pipeline`.

    Calling it again changes nothing.

    Examples:
        >>> import transformers
        >>> register_pipeline()
        >>> generator = transformers.pipeline("explained-text-generation", model=model, tokenizer=tokenizer)
        >>> isinstance(generator, ExplainedTextGenerationPipeline)
        True
    """
    for task, (kind, model, modality) in _TASKS.items():
        registered = PIPELINE_REGISTRY.supported_tasks.get(task)
        if registered is None or registered["impl"] is not kind:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=kind, pt_model=model, type=modality)
