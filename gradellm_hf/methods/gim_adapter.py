"""GIM by its authors' package gim-explain, called as this package's methods are."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..architecture.plain_attention import attention_implementation
from ..errors import GradELLMError
from ..metrics.perturbation import PerturbedText
from ..text.encoding import text_tokenizer
from .gradients import gradients
from .registry import Method, heatmaps

_SETUP = "pip install --no-deps gim-explain==0.1.4"  # torch is all that it needs


def gim(tokenizer: Any) -> Method:
    """Embedding less that of a space, times a gradient whose way through attention and norms is changed; with its sign.

    The package scales gradients at queries, keys and values, softens that of softmax, and holds norms constant. It does so in
    torch's own functions and modules. So in most models of Transformers only the first takes effect: their norms are classes of
    their own, and the softmax is inside of one function for all of attention.

    Source: Edin et al. 2025 (arXiv 2505.17630, "GIM: Improved Interpretability for Large Language Models"), by gim-explain.

    Args:
        tokenizer: The model's, which has the space.

    Returns:
        A method; see `Method`.

    Raises:
        InvalidInputError: It is no tokenizer. Or, when the returned method is called, as for `Method`.
        GradELLMError: gim-explain is not installed, when the returned method is called.
        UnsupportedArchitectureError: As for `Method`, when the returned method is called.

    Examples:
        >>> method = gim(tokenizer)
        >>> callable(method)
        True
    """
    tokenizer = text_tokenizer(tokenizer)

    def method(model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None, /) -> Tensor:
        package, explain = _package()
        text = PerturbedText(model, sequences, prompt_length, attention_mask)
        space = torch.tensor(explain._infer_baseline_token_id(tokenizer), device=text.token_ids.device)
        with torch.inference_mode(False), torch.no_grad():
            baseline = text.model.get_input_embeddings()(space)
        found = gradients(text, "logit", _changed(package.GIM, text.model))
        return heatmaps(text, torch.stack([((x - baseline) * gradient).sum(-1) for x, gradient in found], dim=1))

    return method


@contextlib.contextmanager
def _changed(context: Any, model: Any) -> Iterator[None]:
    with attention_implementation(model, "sdpa"), context(model):  # it knows no other attention of Transformers
        yield


def _package() -> tuple[Any, Any]:
    try:
        return importlib.import_module("gim"), importlib.import_module("gim.explain")
    except ImportError as error:
        raise GradELLMError(f"`gim` needs gim-explain, which is not installed: {_SETUP}") from error
