"""Deletion and insertion: the target's probability while prompt tokens are removed, or come back, in order of their scores."""

from typing import Any, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks.arguments import choice, whole_number
from ..checks.renamed import renamed
from .measured import MeasuredText
from .options import MetricOptions, RandomKeywords, takes_options
from .perturbation import Removal, Window


@renamed(num_steps="num_portions")
@takes_options
def deletion(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    removal: Removal = "zero",
    num_portions: int | None = None,
    **options: Unpack[RandomKeywords],
) -> Tensor:
    """Area under the generated token's probability while the prompt's tokens are removed, highest score first.

    The curve runs over the share of removed tokens, from none to all that may be removed. Its area is the mean probability.
    Range [0, 1]. Lower is better: what scores high was needed.

    Source: Petsiuk et al. 2018 (BMVC, "RISE"), with tokens for pixels.

    Args:
        model: A decoder-only Transformers model in evaluation mode.
        sequences: Token ids of prompts, padded on the left, and continuations, `[R, S]`.
        prompt_length: `P`.
        attributions: Heatmaps `[R, N, S]`, or of several methods `[M, R, N, S]`. Scores of the prompt count; the generated
            prefix stays.
        attention_mask: 0 for padding, `[R, P]` or `[R, S]`; in the continuation, 0 marks steps after a row's end.
        removal: `"zero"` sets a token's embedding to 0, `"mask"` hides it from attention, `"drop"` takes it out of the text.
            The last two never remove the prompt's last token, from which the first generated one is predicted.
        num_portions: Number of equal portions in which tokens are removed; None: one token at a time.
        **options: `level`, `fixed`, `batch_size`, `generator`; see `MetricOptions`.

    Returns:
        `[R]`, or `[M, R]`.

    Raises:
        InvalidInputError: An argument is not usable.
        UnsupportedArchitectureError: The model is not a decoder-only model.

    Examples:
        >>> deletion(model, out.sequences, out.prompt_length, out.attributions, removal="mask").shape  # [R]
        torch.Size([1])
    """
    keep_last, given = removal != "zero", MetricOptions(**options)
    text = MeasuredText(model, sequences, prompt_length, attributions, attention_mask, given, keep_last=keep_last)
    return _area(text, removal, num_portions, inserts=False)


@renamed(num_steps="num_portions")
@takes_options
def insertion(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    removal: Removal = "zero",
    num_portions: int | None = None,
    **options: Unpack[RandomKeywords],
) -> Tensor:
    """Area under the generated token's probability while removed tokens come back, highest score first.

    The curve of `deletion`, from the prompt without any removable token to the whole prompt. Range [0, 1]. Higher is better:
    what scores high suffices.

    Source, arguments and return value, `[R]` or `[M, R]`, as for `deletion`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `deletion`.

    Examples:
        >>> two_methods = torch.stack([out.attributions, torch.rand(out.attributions.shape)])  # [M, R, N, S]
        >>> insertion(model, out.sequences, out.prompt_length, two_methods).shape  # [M, R]
        torch.Size([2, 1])
    """
    keep_last, given = removal != "zero", MetricOptions(**options)
    text = MeasuredText(model, sequences, prompt_length, attributions, attention_mask, given, keep_last=keep_last)
    return _area(text, removal, num_portions, inserts=True)


def _area(text: MeasuredText, removal: Removal, num_portions: int | None, inserts: bool) -> Tensor:
    choice("removal", removal, get_args(Removal))
    if num_portions is not None:
        num_portions = whole_number("num_portions", num_portions, 1, none="one token at a time")

    def measure(window: Window, rows: Tensor, scores: Tensor) -> Tensor:
        ties = torch.rand(text.num_rows, text.prompt_length, generator=text.source).to(rows.device)[rows]
        ranks = _descending_ranks(scores, text.removable[rows], ties)
        counts, last = _counts(text.removable[rows].sum(-1), num_portions)
        flat = ranks.reshape(-1, text.prompt_length)
        heatmap, point = (
            torch.arange(counts.shape[1], device=rows.device) <= last.repeat(len(flat) // len(rows))[:, None]
        ).nonzero(as_tuple=True)
        row = heatmap % len(rows)
        first = flat[heatmap] < counts[row, point, None]
        kept = (first if inserts else ~first) | ~text.removable[rows[row]]
        # The curves of all heatmaps have the same ends, and often more points in common. Each text is run once.
        texts, inverse = torch.cat([row[:, None], kept], dim=1).unique(dim=0, return_inverse=True)
        probabilities = text.target_probabilities(rows[texts[:, 0]], window, lambda items: texts[items, 1:] != 0, removal)
        curve = torch.zeros(len(flat), counts.shape[1], dtype=torch.float64, device=rows.device)
        curve[heatmap, point] = probabilities.double()[inverse]
        share = counts / counts[:, -1:]
        return torch.trapezoid(curve.reshape(*ranks.shape[:-1], -1), share.broadcast_to(*ranks.shape[:-1], -1))

    return text.mean_over_windows(measure)


def _descending_ranks(scores: Tensor, removable: Tensor, ties: Tensor) -> Tensor:
    """0 for the removable position with the highest score, and so on, `[..., r, P]`; equal scores in the order of `ties`."""
    shuffled = ties.argsort(-1).expand(scores.shape)
    candidates = scores.masked_fill(~removable, -torch.inf).gather(-1, shuffled)
    order = shuffled.gather(-1, candidates.argsort(dim=-1, descending=True, stable=True))
    return order.argsort(-1)


def _counts(num_removable: Tensor, num_portions: int | None) -> tuple[Tensor, Tensor]:
    """How many tokens are gone at each point of the curves, `[r, points]`, and the index of each row's last point.

    A row with fewer points repeats its last one, which adds nothing to the area.
    """
    last = num_removable if num_portions is None else num_removable.clamp(max=num_portions)
    points = torch.arange(int(last.max()) + 1, device=num_removable.device).minimum(last[:, None])
    return (points * num_removable[:, None] / last[:, None]).round().long(), last
