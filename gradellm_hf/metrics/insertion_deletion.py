"""Deletion and insertion: the target's probability while parts of the prompt go, or come back, in order of their scores."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks.arguments import true_or_false, whole_number
from ..checks.renamed import renamed
from .measured import MeasuredText
from .options import MetricOptions, SourceKeywords, takes_options
from .perturbation import Removal, Window, masked_mean
from .ranks import descending_ranks
from .sources import Sources


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
    aligned: bool = False,
    **options: Unpack[SourceKeywords],
) -> Tensor:
    """Area under the generated token's probability while the prompt's tokens are removed, highest score first.

    The curve runs over the share of removed tokens, from none to all that may be removed. Its area is the mean probability.
    Range [0, 1]. Lower is better: what scores high was needed.

    Source: Petsiuk et al. 2018 (BMVC, "RISE"), with tokens for pixels; `aligned`: Walker et al. 2024 (IJCAI, "Attribution
    Quality Metrics with Magnitude Alignment", "MAS").

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
        aligned: Also count the size of the scores (MAS). The curve `c` is the log-probability, scaled to 1 for the whole prompt
            and 0 without it, cut off there, and not rising. How far it is from the share `s` of the scores that is left is a
            penalty: the area is that of `min(1, c + |c - s|)`; for `insertion`, of `max(0, c - |c - s|)`.
        **options: `level`, `fixed`, `batch_size`, `generator`, `sources`; see `MetricOptions`.

    Returns:
        `[R]`, or `[M, R]`. If `aligned`, NaN for a row whose tokens do not become less likely without the prompt.

    Raises:
        InvalidInputError: An argument is not usable.
        UnsupportedArchitectureError: The model is not a decoder-only model.

    Examples:
        >>> deletion(model, out.sequences, out.prompt_length, out.attributions, removal="mask").shape  # [R]
        torch.Size([1])
    """
    keep_last, given = removal != "zero", MetricOptions(**options)
    text = MeasuredText(model, sequences, prompt_length, attributions, attention_mask, given, keep_last=keep_last)
    return _area(text, Sources(text, given.sources, removal), num_portions, aligned, inserts=False)


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
    aligned: bool = False,
    **options: Unpack[SourceKeywords],
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
    return _area(text, Sources(text, given.sources, removal), num_portions, aligned, inserts=True)


def _area(text: MeasuredText, sources: Sources, num_portions: int | None, aligned: bool, inserts: bool) -> Tensor:
    true_or_false("aligned", aligned)
    if num_portions is not None:
        num_portions = whole_number("num_portions", num_portions, 1, none="one token at a time")

    def measure(window: Window, rows: Tensor, scores: Tensor) -> Tensor:
        present, scores = sources.present[rows], sources.sums(scores, rows)
        ranks = descending_ranks(scores, present, sources.ties(text.source)[rows])
        counts, last = _counts(present.sum(-1), num_portions)
        flat = ranks.reshape(-1, sources.num_sources)
        heatmap, point = (
            torch.arange(counts.shape[1], device=rows.device) <= last.repeat(len(flat) // len(rows))[:, None]
        ).nonzero(as_tuple=True)
        row = heatmap % len(rows)
        first = flat[heatmap] < counts[row, point, None]
        found = sources.log_probabilities(rows[row], window, first if inserts else ~first)
        mean = masked_mean(found, text.step_mask[rows[row], window.first : window.last])
        curve = torch.zeros(len(flat), counts.shape[1], dtype=torch.float64, device=rows.device)
        curve[heatmap, point] = (mean if aligned else mean.exp()).double()
        curve = curve.reshape(*ranks.shape[:-1], -1)
        if aligned:
            curve = _aligned(curve, last, _shares(scores, present, ranks, counts), inserts)
        share = counts / counts[:, -1:]
        return torch.trapezoid(curve, share.broadcast_to(curve.shape))

    return text.mean_over_windows(measure)


def _counts(num_removable: Tensor, num_portions: int | None) -> tuple[Tensor, Tensor]:
    """How many sources are gone at each point of the curves, `[r, points]`, and the index of each row's last point.

    A row with fewer points repeats its last one, which adds nothing to the area.
    """
    last = num_removable if num_portions is None else num_removable.clamp(max=num_portions)
    points = torch.arange(int(last.max()) + 1, device=num_removable.device).minimum(last[:, None])
    return (points * num_removable[:, None] / last[:, None]).round().long(), last


def _shares(scores: Tensor, present: Tensor, ranks: Tensor, counts: Tensor) -> Tensor:
    """The share of the positive scores that the first sources have, at each point `[..., r, points]`; of zeros, all alike."""
    positive = scores.masked_fill(~present, 0).relu()
    positive = torch.where(positive.sum(-1, keepdim=True) > 0, positive, present.to(positive))
    descending = torch.zeros_like(positive).scatter(-1, ranks, positive)
    sums = torch.nn.functional.pad(descending.cumsum(-1), (1, 0)).gather(-1, counts.expand(*ranks.shape[:-1], -1))
    return sums / sums[..., -1:]


def _aligned(curve: Tensor, last: Tensor, shares: Tensor, inserts: bool) -> Tensor:
    """Curves `[..., r, points]` of log-probabilities as MAS has them; see `deletion`. NaN where they do not fall, or rise."""
    end = curve.gather(-1, last[:, None].expand(*curve.shape[:-1], 1))
    start = curve[..., :1]
    low, high = (start, end) if inserts else (end, start)
    scaled = ((curve - low) / (high - low).masked_fill(high <= low, torch.nan)).clamp(0, 1)
    if inserts:
        scaled = scaled.cummax(-1).values
        return (scaled - (scaled - shares).abs()).clamp_min(0)
    scaled = scaled.cummin(-1).values
    return (scaled + (scaled - (1 - shares)).abs()).clamp_max(1)
