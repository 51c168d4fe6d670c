"""What leaving sources out does to the log-probability: the linear datamodelling score, and the drop of the strongest."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks.arguments import whole_number
from .measured import MeasuredText
from .options import MetricOptions, SourceKeywords, takes_options
from .perturbation import Removal, Window, masked_mean
from .ranks import descending_ranks, spearman
from .sources import Sources


@takes_options
def linear_datamodelling_score(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    removal: Removal = "mask",
    num_masks: int = 64,
    **options: Unpack[SourceKeywords],
) -> Tensor:
    """LDS: how well sums of scores rank what is left of a prediction when random sources are left out. Range [-1, 1].

        LDS = spearman_k(sum of the scores of the sources that mask k keeps, log-probability with these sources only)

    Every mask keeps each source with probability 1/2. Ranks are the same for log-probabilities, probabilities and their logits.
    Higher is better.

    Source: Park et al. 2023 (arXiv 2303.14186, "TRAK"); for sources in a prompt Cohen-Wang et al. 2024 (arXiv 2409.00729,
    "ContextCite").

    Args:
        model: A decoder-only Transformers model in evaluation mode.
        sequences: Token ids of prompts, padded on the left, and continuations, `[R, S]`.
        prompt_length: `P`.
        attributions: Heatmaps `[R, N, S]`, or of several methods `[M, R, N, S]`, for all of which the same masks are drawn.
            Scores of the prompt count; the generated prefix stays.
        attention_mask: 0 for padding, `[R, P]` or `[R, S]`; in the continuation, 0 marks steps after a row's end.
        removal: `"mask"` hides a source from attention, `"drop"` takes it out of the text, `"zero"` sets its embeddings to 0.
            The first two never remove the prompt's last token, from which the first generated one is predicted.
        num_masks: Masks per row. All generated tokens share their forward passes.
        **options: `level`, `fixed`, `batch_size`, `generator`, `sources`; see `MetricOptions`.

    Returns:
        `[R]`, or `[M, R]`; NaN for a row of whose masks all sums, or all log-probabilities, are equal.

    Raises:
        InvalidInputError: An argument is not usable.
        UnsupportedArchitectureError: The model is not a decoder-only model.

    Examples:
        >>> sources = torch.arange(out.prompt_length) // 2  # pairs of tokens
        >>> arguments = model, out.sequences, out.prompt_length, out.attributions
        >>> linear_datamodelling_score(*arguments, sources=sources, num_masks=16).shape  # [R]
        torch.Size([1])
    """
    num_masks = whole_number("num_masks", num_masks, 2)
    keep_last, given = removal != "zero", MetricOptions(**options)
    text = MeasuredText(model, sequences, prompt_length, attributions, attention_mask, given, keep_last=keep_last)
    sources = Sources(text, given.sources, removal)
    kept, found = sources.random_ablations(num_masks, text.source)

    def measure(window: Window, rows: Tensor, scores: Tensor) -> Tensor:
        steps = slice(window.first, window.last)
        values = masked_mean(found[rows][..., steps], text.step_mask[rows, None, steps])
        return spearman(torch.einsum("...rg,rkg->...rk", sources.sums(scores, rows), kept[rows].double()), values)

    return text.mean_over_windows(measure)


@takes_options
def top_k_drop(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    k: int = 1,
    removal: Removal = "mask",
    **options: Unpack[SourceKeywords],
) -> Tensor:
    """How much log-probability the generated token loses without the `k` sources of the highest scores. Higher is better.

        log p(token | prompt) - log p(token | prompt without these sources)

    It is negative if the token becomes likelier. Of a prompt with at most `k` sources, all are left out. Equal scores are in a
    random order.

    Source: Cohen-Wang et al. 2024 (arXiv 2409.00729, "ContextCite").

    Args:
        k: How many sources are left out.

    The other arguments are as for `linear_datamodelling_score`.

    Returns:
        In nats per token, `[R]`, or `[M, R]`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `linear_datamodelling_score`.

    Examples:
        >>> top_k_drop(model, out.sequences, out.prompt_length, out.attributions, k=3, removal="drop").shape  # [R]
        torch.Size([1])
    """
    k = whole_number("k", k, 1)
    keep_last, given = removal != "zero", MetricOptions(**options)
    text = MeasuredText(model, sequences, prompt_length, attributions, attention_mask, given, keep_last=keep_last)
    sources = Sources(text, given.sources, removal)

    def measure(window: Window, rows: Tensor, scores: Tensor) -> Tensor:
        present = sources.present[rows]
        ranks = descending_ranks(sources.sums(scores, rows), present, sources.ties(text.source)[rows])
        without = (ranks >= k).reshape(-1, sources.num_sources)
        row = rows.repeat(len(without) // len(rows))
        whole = sources.log_probabilities(rows, window, torch.ones_like(present))
        left = sources.log_probabilities(row, window, without).reshape(*ranks.shape[:-1], -1)
        return masked_mean(whole - left, text.step_mask[rows, window.first : window.last])

    return text.mean_over_windows(measure)
