"""Grad-ELLM explanations by `model.generate(..., custom_generate=<this repository>, trust_remote_code=True)`."""

from contextvars import ContextVar
from typing import Any

from gradellm_hf import explain_generate

_explaining: ContextVar[bool] = ContextVar("explaining", default=False)


def generate(*inputs: Any, model: Any, explain_config: Any = None, **kwargs: Any) -> Any:
    """Generates as `model.generate` does, and explains every generated token.

    Args:
        *inputs: Prompt, `[batch, P]`, if it is given by position.
        model: The model whose `generate` was called.
        explain_config: A `gradellm_hf.GradELLMConfig`: what to explain and how.
        **kwargs: Everything else that `model.generate` takes.

    Returns:
        `gradellm_hf.ExplainGenerateOutput`, whether or not `return_dict_in_generate=True` is given.
    """
    if _explaining.get():  # if this folder is beside a model's weights, this function is also `model.generate`
        return type(model).generate(model, *inputs, **kwargs)
    token = _explaining.set(True)
    try:
        return explain_generate(model, *inputs, explain_config=explain_config, **kwargs)
    finally:
        _explaining.reset(token)
