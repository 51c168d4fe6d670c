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
    """Grad-ELLM (Huang & Chan, arXiv 2601.03089).

    Args:
        config: What to explain and how; `explain_config` of `explain_sequences`.

    The other arguments and the return value, `[R, N, S]`, are as for `Method`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `explain_sequences`.

    Examples:
        >>> grad_ellm(model, out.sequences, out.prompt_length, config=GradELLMConfig(layers=1)).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    return explain_sequences(model, sequences, prompt_length, attention_mask, explain_config=config).attributions
