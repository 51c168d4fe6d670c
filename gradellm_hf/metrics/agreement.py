"""Agreement of scores with the tokens that people marked, and with the effect of leaving tokens out."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks.arguments import binary_mask, is_index, is_list
from ..checks.schema import check
from ..errors import InvalidInputError
from .measured import MeasuredText
from .options import MetricKeywords, MetricOptions, takes_options
from .perturbation import PerturbedText, Window, joint_hellinger
from .ranks import average_ranks, check_no_nan, pearson, spearman


def token_labels(tokens: Sequence[str], spans: Sequence[tuple[int, int]]) -> Tensor:
    """Which tokens a human rationale marks.

    A token is marked if a span covers at least one of its characters that is no white space. If it has only white space, any
    character counts. An empty piece (of a character that several tokens make up) is marked if the piece before it is.

    Args:
        tokens: `S` pieces of the text, such as `Explanation.tokens`; joined, they are the text.
        spans: Half-open ranges of characters of that text.

    Returns:
        `[S]` bool.

    Raises:
        InvalidInputError: `tokens` are no texts; or a span is no pair of whole numbers, is empty, or does not lie in the text.

    Examples:
        >>> token_labels(["The", " capital", " of", " Italy"], [(16, 20)])  # characters 16 to 20: "taly"
        tensor([False, False, False,  True])
    """
    check(tokens, list[str], "`tokens`")
    check(spans, list[Any], "`spans`")
    length = sum(map(len, tokens))
    for span in spans:
        if not is_list(span) or len(span) != 2 or not all(map(is_index, span)):
            raise InvalidInputError(f"A span is a pair (start, end) of whole numbers, got {span!r}.")
        start, end = span
        if not 0 <= start < end <= length:
            raise InvalidInputError(
                f"The span ({start}, {end}) is empty or outside of the text, which has {length} characters."
            )
    labels: list[bool] = []
    begin = 0
    for token in tokens:
        end = begin + len(token)
        inner = token.strip() or token
        first = begin + token.index(inner)
        marked = any(start < first + len(inner) and first < stop for start, stop in spans)
        labels.append(labels[-1] if labels and not token else marked and bool(token))
        begin = end
    return torch.tensor(labels, dtype=torch.bool)


def auc(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Area under the ROC curve: how often a marked token scores above an unmarked one; ties count half. Range [0, 1].

    Scores without information give 1/2. The result is NaN if all tokens, or none, are marked. Source: Mann & Whitney 1947, by
    ranks.

    Args:
        scores: `[..., S]`.
        labels: True (or 1) for marked tokens, broadcast to `[..., S]`.
        mask: Which tokens count, broadcast to `[..., S]`; None: all.

    Returns:
        `[...]`, float64.

    Raises:
        InvalidInputError: Shapes do not fit, a score is NaN, or `labels` or `mask` hold something other than 0 and 1.

    Examples:
        >>> auc(torch.tensor([0.1, 0.9, 0.4, 0.2]), torch.tensor([0, 1, 0, 1]))  # 3 of 4 pairs are in the right order
        tensor(0.7500, dtype=torch.float64)
    """
    labels, mask = checked_labels(scores, labels, mask)
    num_marked, num_others = labels.sum(-1).double(), (mask & ~labels).sum(-1).double()
    ranks = average_ranks(scores, mask).masked_fill(~labels, 0).sum(-1)
    return (ranks - num_marked * (num_marked + 1) / 2) / (num_marked * num_others)


def average_precision(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """For each marked token, the share of marked ones among all tokens that score at least as high; the mean. Range (0, 1].

    This is the sum of precisions times steps of recall, without interpolation. Scores without information give about the share
    of marked tokens. The result is NaN if none are marked.

    Args:
        scores: `[..., S]`.
        labels: True (or 1) for marked tokens, broadcast to `[..., S]`.
        mask: Which tokens count, broadcast to `[..., S]`; None: all.

    Returns:
        `[...]`.

    Raises:
        InvalidInputError: As for `auc`.

    Examples:
        >>> average_precision(torch.tensor([0.1, 0.9, 0.4, 0.2]), torch.tensor([0, 1, 0, 1]))  # the mean of 1/1 and 2/3
        tensor(0.8333)
    """
    labels, mask = checked_labels(scores, labels, mask)
    x = scores.double()

    def at_least(which: Tensor) -> Tensor:
        ascending = x.masked_fill(~which, -torch.inf).sort(-1).values.contiguous()
        return x.shape[-1] - torch.searchsorted(ascending, x.contiguous())

    precision = at_least(labels) / at_least(mask)
    return precision.masked_fill(~labels, 0).sum(-1) / labels.sum(-1)


def leave_one_out(text: PerturbedText) -> Tensor:
    """`Hd(p(X), p(X'))` with one prompt position's embedding set to 0, for each of them and each generated token, `[R, P, N]`.

    It is 0 if the position is not removable. All tokens share the forward passes.
    """
    row, position = text.removable.nonzero(as_tuple=True)
    found = text.leave_one_out(row, position)
    changes = found.new_zeros(text.num_rows, text.prompt_length, text.num_steps, dtype=torch.float64)
    changes[row, position] = found.double()
    return changes


@takes_options
def rank_correlation(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    **options: Unpack[MetricKeywords],
) -> Tensor:
    """Spearman correlation of scores with the effect of leaving one token out. Range [-1, 1], higher is better.

    The effect of a prompt token is the Hellinger distance between the next-token distributions with its embedding as it is and
    set to 0. Source: Jain & Wallace 2019 (NAACL, "Attention is not Explanation") take leave-one-out as the reference.

    Args:
        model: A decoder-only Transformers model in evaluation mode.
        sequences: Token ids of prompts, padded on the left, and continuations, `[R, S]`.
        prompt_length: `P`.
        attributions: Heatmaps `[R, N, S]`, or of several methods `[M, R, N, S]`. Scores of the prompt count.
        attention_mask: 0 for padding, `[R, P]` or `[R, S]`; in the continuation, 0 marks steps after a row's end.
        **options: `level`, `fixed` (which are left out of the comparison), `batch_size`; see `MetricOptions`.

    Returns:
        `[R]`, or `[M, R]`; NaN for a row whose scores, or effects, are all equal.

    Raises:
        InvalidInputError: An argument is not usable.
        UnsupportedArchitectureError: The model is not a decoder-only model.

    Examples:
        >>> rank_correlation(model, out.sequences, out.prompt_length, out.attributions).shape  # [R]
        torch.Size([1])
    """
    return effect_correlations(model, sequences, prompt_length, attributions, attention_mask, **options)[..., 0]


@takes_options
def pearson_correlation(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    **options: Unpack[MetricKeywords],
) -> Tensor:
    """Pearson correlation of scores with the effect of leaving one token out. Range [-1, 1], higher is better.

    As `rank_correlation`, whose arguments, return value and errors it has, but the few tokens with large effects count most.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `rank_correlation`.

    Examples:
        >>> pearson_correlation(model, out.sequences, out.prompt_length, out.attributions).shape  # [R]
        torch.Size([1])
    """
    return effect_correlations(model, sequences, prompt_length, attributions, attention_mask, **options)[..., 1]


@takes_options
def effect_correlations(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attributions: Tensor,
    attention_mask: Tensor | None = None,
    **options: Unpack[MetricKeywords],
) -> Tensor:
    """`rank_correlation` and `pearson_correlation` in one, `[..., R, 2]`. Arguments and errors are theirs."""
    text = MeasuredText(model, sequences, prompt_length, attributions, attention_mask, MetricOptions(**options))
    changes = leave_one_out(text)

    def compared(correlation: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        def measure(window: Window, rows: Tensor, scores: Tensor) -> Tensor:
            steps = slice(window.first, window.last)
            joint = joint_hellinger(changes[rows][..., steps], text.step_mask[rows, None, steps])
            return correlation(scores, *torch.broadcast_tensors(joint, text.removable[rows]))

        return text.mean_over_windows(measure)

    return torch.stack([compared(spearman), compared(pearson)], dim=-1)


def checked_labels(scores: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels where the mask has them, and the mask, as bools of the scores' shape; InvalidInputError if they do not fit."""
    check_no_nan("scores", scores)
    labels = binary_mask("labels", labels, scores.shape)
    mask = torch.ones_like(labels) if mask is None else binary_mask("mask", mask, scores.shape)
    return labels & mask, mask
