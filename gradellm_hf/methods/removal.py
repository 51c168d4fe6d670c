"""Methods that take positions out and look at what changes: occlusion, LIME."""

from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks.arguments import checked_generator, choice, real_number, whole_number
from ..metrics.perturbation import PerturbedText, Window
from .gradients import predicted_targets
from .registry import heatmaps

Measure = Literal["log_probability", "probability", "hellinger"]


def occlusion(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    measure: Measure = "log_probability",
    batch_size: int = 16,
) -> Tensor:
    """Leave one out: what changes for each generated token when the embedding of one position is set to 0.

    It takes one forward pass per position, for all tokens that were generated after it.

    Source: Zeiler & Fergus 2014 (arXiv 1311.2901); for text Li et al. 2016 (arXiv 1612.08220).

    Args:
        measure: The drop of the generated token's `"log_probability"` or `"probability"`, with its sign, or the
            `"hellinger"` distance between the next-token distributions (what `rank_correlation` compares with).
        batch_size: Texts per forward pass.

    The other arguments and the return value, `[R, N, S]`, are as for `Method`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `Method`.

    Examples:
        >>> occlusion(model, out.sequences, out.prompt_length, measure="hellinger").shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    choice("measure", measure, get_args(Measure))
    text = PerturbedText(model, sequences, prompt_length, attention_mask, batch_size=batch_size)
    window, targets = Window(0, text.num_steps), text.token_ids[:, prompt_length:]
    length = text.token_ids.shape[1] - 1
    reference = text.reference(window)
    row, position = text.real[:, :length].nonzero(as_tuple=True)

    drop = None if measure == "hellinger" else partial(_drop, reference, targets, measure)
    scores = text.embeddings.new_zeros(text.num_rows, length, text.num_steps, dtype=reference.dtype)
    scores[row, position] = text.leave_one_out(row, position, drop)
    return heatmaps(text, scores.transpose(1, 2))


def _drop(
    reference: Tensor,
    targets: Tensor,
    measure: Literal["log_probability", "probability"],
    rows: Tensor,
    log_probabilities: Tensor,
) -> Tensor:
    """How much less likely the generated tokens are, `[b, N]`."""
    before, after = (predicted_targets(x, targets[rows], measure) for x in (reference[rows], log_probabilities))
    return before - after


def lime(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    measure: Literal["log_probability", "probability"] = "log_probability",
    num_samples: int = 256,
    ridge: float = 1.0,
    kernel_width: float = 0.25,
    generator: torch.Generator | None = None,
    batch_size: int = 16,
) -> Tensor:
    """LIME: coefficients of a linear model of the token's probability, fitted to texts with random positions taken out.

    Every position is kept with probability 1/2, else its embedding is set to 0. The fit is ridge regression with an intercept.
    A text has the weight `exp(-d^2 / kernel_width^2)`, where `d` is the cosine distance between what is kept and all. The same
    texts are used for every generated token; each is fitted to the positions before it.

    Source: Ribeiro et al. 2016 (arXiv 1602.04938).

    Args:
        measure: What is fitted: the `"log_probability"` or `"probability"` of the generated token.
        num_samples: Perturbed texts per row, besides the text itself.
        ridge: Weight of the penalty.
        kernel_width: Width of the kernel.
        generator: Source of randomness, on the CPU; None: one with seed 0.
        batch_size: Texts per forward pass.

    The other arguments and the return value, `[R, N, S]`, are as for `Method`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `Method`.

    Examples:
        >>> lime(model, out.sequences, out.prompt_length, num_samples=16).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    choice("measure", measure, ("log_probability", "probability"))
    num_samples = whole_number("num_samples", num_samples, 1)
    ridge = real_number("ridge", ridge, "a number above 0", 0, open_ends=True)
    kernel_width = real_number("kernel_width", kernel_width, "a number above 0", 0, open_ends=True)
    source = checked_generator(generator)
    text = PerturbedText(model, sequences, prompt_length, attention_mask, batch_size=batch_size)
    window, targets = Window(0, text.num_steps), text.token_ids[:, prompt_length:]
    length = text.token_ids.shape[1] - 1
    kept = torch.cat([torch.ones(1, length), torch.rand(num_samples, length, generator=source).lt(0.5).float()])
    kept = kept.to(targets.device)  # [K, S - 1]
    row = torch.arange(text.num_rows, device=targets.device).repeat_interleave(len(kept))
    values = text.measure(
        row,
        window,
        lambda items: kept[items % len(kept)],
        lambda r, log_probabilities: predicted_targets(log_probabilities, targets[r], measure),
    ).reshape(text.num_rows, len(kept), -1)
    scores = values.new_zeros(text.num_rows, text.num_steps, length)
    for step in range(text.num_steps):
        before = prompt_length + step
        features = kept[None, :, :before] * text.real[:, None, :before]
        scores[:, step, :before] = _fit(features.double(), values[..., step].double(), ridge, kernel_width).to(scores)
    return heatmaps(text, scores)


def _fit(features: Tensor, values: Tensor, ridge: float, kernel_width: float) -> Tensor:
    """Weighted ridge regression of `values [R, K]` on `features [R, K, F]`, the first of them the text's: `[R, F]`."""
    cosine = torch.nn.functional.cosine_similarity(features, features[:, :1], dim=-1)
    weights = torch.exp(-((1 - cosine) ** 2) / kernel_width**2)[..., None]
    weights = weights / weights.sum(1, keepdim=True) * features.shape[1]
    x = features - (weights * features).sum(1, keepdim=True) / features.shape[1]
    y = values[..., None] - (weights * values[..., None]).sum(1, keepdim=True) / features.shape[1]
    penalty = ridge * torch.eye(features.shape[-1], dtype=x.dtype, device=x.device)
    coefficients: Tensor = torch.linalg.solve(x.mT @ (weights * x) + penalty, x.mT @ (weights * y))
    return coefficients[..., 0]
