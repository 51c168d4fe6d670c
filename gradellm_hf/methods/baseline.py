"""Random scores, which every method has to beat."""

from typing import Any

import torch
from torch import Tensor

from ..checks.arguments import checked_generator
from ..metrics.perturbation import PerturbedText
from .registry import heatmaps


def random(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Uniform random numbers between 0 and 1.

    Args:
        generator: Source of randomness, on the CPU; None: one with seed 0.

    The other arguments and the return value, `[R, N, S]`, are as for `Method`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `Method`.

    Examples:
        >>> random(model, out.sequences, out.prompt_length, generator=torch.Generator().manual_seed(1)).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    text = PerturbedText(model, sequences, prompt_length, attention_mask)
    shape = (text.num_rows, text.num_steps, text.token_ids.shape[1])
    return heatmaps(text, torch.rand(shape, generator=checked_generator(generator)).to(text.token_ids.device))
