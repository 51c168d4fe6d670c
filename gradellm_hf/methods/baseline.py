"""Random scores: what every method has to beat."""

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
    """Uniform random numbers between 0 and 1, from `generator` (on the CPU; None: one with seed 0). Else as for `Method`."""
    text = PerturbedText(model, sequences, prompt_length, attention_mask)
    shape = (text.num_rows, text.num_steps, text.token_ids.shape[1])
    return heatmaps(text, torch.rand(shape, generator=checked_generator(generator)).to(text.token_ids.device))
