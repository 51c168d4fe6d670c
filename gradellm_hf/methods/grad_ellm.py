"""Grad-ELLM itself, as a method among others."""

from typing import Any

from torch import Tensor

from ..configuration import GradELLMConfig
from ..generation import explain_sequences


def grad_ellm(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    config: GradELLMConfig | None = None,
) -> Tensor:
    """Grad-ELLM (Huang & Chan, arXiv 2601.03089). `config` as for `explain_sequences`; the rest as for `Method`."""
    return explain_sequences(model, sequences, prompt_length, attention_mask, explain_config=config).attributions
