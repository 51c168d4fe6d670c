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
    """Grad-ELLM (Huang & Chan, arXiv 2601.03089).

    Args:
        explain_config: What to explain and how, as for `explain_sequences`.

    The other arguments and the return value, `[R, N, S]`, are as for `Method`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `explain_sequences`.

    Examples:
        >>> grad_ellm(model, out.sequences, out.prompt_length, explain_config=GradELLMConfig(layers=1)).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    return explain_sequences(model, sequences, prompt_length, attention_mask, explain_config=explain_config).attributions
