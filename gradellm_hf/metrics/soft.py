"""Soft-NS and Soft-NC: sufficiency and comprehensiveness under random, element-wise retention of the embeddings."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks.arguments import choice
from .calibration import minmax
from .measured import MeasuredText
from .options import MetricOptions, SamplingKeywords, takes_options
from .perturbation import Window

Scaling = Literal["minmax", "none"]


@takes_options
def soft_ns(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: Scaling = "minmax",
    **options: Unpack[SamplingKeywords],
) -> Tensor:
    """Soft normalised sufficiency: how much of the prediction is kept by what scores high. Range [0, 1], higher is better.

        Soft-NS = max(0, S(X'_r=a) - S(Z)) / (1 - S(Z)),    S(X') = 1 - Hd(p(X), p(X'))

    Each element of the embedding of prompt position `i` is kept with probability `r_i`, else set to 0; `Z` has all set to 0.
    A method whose scores have a larger mean keeps more of the prompt, and is rewarded for it. `pi_soft_ns` corrects this.

    Source: Zhao & Aletras 2023 (ACL, "Incorporating Attribution Importance for Improving Faithfulness Metrics"); for language
    models Zhao & Shan 2024 (arXiv 2402.00794).

    Args:
        model: A decoder-only Transformers model in evaluation mode.
        sequences: Token ids of prompts, padded on the left, and continuations, `[R, S]`.
        prompt_length: `P`.
        attributions: Heatmaps `[R, N, S]`, or of several methods `[M, R, N, S]`, for all of which the same random numbers are
            drawn. Scores of the prompt count; the generated prefix is never perturbed.
        attention_mask: 0 for padding, `[R, P]` or `[R, S]`; in the continuation, 0 marks steps after a row's end.
        scaling: `"minmax"` scales scores to [0, 1] over the prompt; `"none"` takes them as they are, cut off at 0 and 1.
        **options: `level`, `fixed`, `batch_size`, `generator`, `num_samples`; see `MetricOptions`.

    Returns:
        `[R]`, or `[M, R]`; NaN for rows whose prediction does not depend on the embeddings (`S(Z) = 1`).

    Raises:
        InvalidInputError: An argument is not usable.
        UnsupportedArchitectureError: The model is not a decoder-only model.

    Examples:
        >>> value = soft_ns(model, out.sequences, out.prompt_length, out.attributions)
        >>> value.shape, bool((value >= 0).all())  # [R]
        (torch.Size([1]), True)
    """
    text = MeasuredText(model, sequences, prompt_length, attributions, attention_mask, MetricOptions(**options))

    def measure(window: Window, rows: Tensor, scores: Tensor) -> Tensor:
        r = scaled(scores, text.removable[rows], scaling)
        return sufficiency(*soft_distances(text, window, rows, r))

    return text.mean_over_windows(measure)


@takes_options
def soft_nc(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: Scaling = "minmax",
    **options: Unpack[SamplingKeywords],
) -> Tensor:
    """Soft normalised comprehensiveness: how much of the prediction is lost without what scores high. Higher is better.

        Soft-NC = (1 - S(X'_r=1-a)) / (1 - S(Z))

    It is at least 0. It is 1 if the prediction changes as much as without any prompt, and more if it changes more.

    Source, arguments and return value, `[R]` or `[M, R]`, as for `soft_ns`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `soft_ns`.

    Examples:
        >>> soft_nc(model, out.sequences, out.prompt_length, out.attributions, num_samples=2).shape  # [R]
        torch.Size([1])
    """
    text = MeasuredText(model, sequences, prompt_length, attributions, attention_mask, MetricOptions(**options))

    def measure(window: Window, rows: Tensor, scores: Tensor) -> Tensor:
        r = 1 - scaled(scores, text.removable[rows], scaling)
        return comprehensiveness(*soft_distances(text, window, rows, r))

    return text.mean_over_windows(measure)


def soft_distances(text: MeasuredText, window: Window, rows: Tensor, retention: Tensor) -> tuple[Tensor, Tensor]:
    """`Hd(p(X), p(X'))` with elements kept at random, and `Hd(p(X), p(Z))`.

    Args:
        retention: Probability to keep an element of each position, `[..., r, P]`, for the `r` rows of `rows`.

    Returns:
        `[num_samples, ..., r]` and `[r]`.
    """
    P, E = text.prompt_length, text.embeddings.shape[-1]
    flat = retention.reshape(-1, P)
    index = torch.arange(len(rows), device=rows.device).repeat(len(flat) // len(rows))
    removable = text.removable[rows, :, None]
    distances = []
    for _ in range(text.options.num_samples):
        # One number per element of every row's prompt, so that what is drawn depends on the text alone.
        drawn = torch.rand(text.num_rows, P, E, generator=text.source).to(rows.device)[rows]

        def keep(items: Tensor, drawn: Tensor = drawn) -> Tensor:
            return (drawn[index[items]] < flat[items, :, None]) | ~removable[index[items]]

        distances.append(text.distances(rows[index], window, keep).reshape(retention.shape[:-1]))
    return torch.stack(distances), text.distances(rows, window, lambda items: ~text.removable[rows[items]])


def sufficiency(distances: Tensor, without_prompt: Tensor) -> Tensor:
    """`max(0, S(X') - S(Z)) / (1 - S(Z))`, averaged over draws, `[..., r]` from `[num_samples, ..., r]` and `[r]`."""
    return ((without_prompt - distances).clamp_min(0) / without_prompt).mean(0)


def comprehensiveness(distances: Tensor, without_prompt: Tensor) -> Tensor:
    """`(1 - S(X')) / (1 - S(Z))`, averaged over draws, `[..., r]` from `[num_samples, ..., r]` and `[r]`."""
    return (distances / without_prompt.masked_fill(without_prompt == 0, torch.nan)).mean(0)


def scaled(scores: Tensor, mask: Tensor, scaling: Scaling) -> Tensor:
    """Scores as probabilities; see `soft_ns`."""
    choice("scaling", scaling, get_args(Scaling))
    return minmax(scores, mask) if scaling == "minmax" else scores.clamp(0, 1)
