"""Grad-ELLM itself, as a method among others."""

from typing import Any

from torch import Tensor

from ..checks.renamed import renamed
from ..configuration import GradELLMConfig
from ..generation import explain_sequences


@renamed(config="explain_config")
def grad_ellm(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    explain_config: GradELLMConfig | None = None,
) -> Tensor:
    """Grad-ELLM (Huang & Chan, arXiv 2601.03089). `explain_config` as for `explain_sequences`; the rest as for `Method`."""
    out = explain_sequences(model, sequences, prompt_length, attention_mask, explain_config=explain_config)
    assert out.attributions is not None  # for type checkers
    return out.attributions
