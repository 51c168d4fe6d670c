"""What counts as a source, and which share of an answer rests on it: the one definition that everything shows.

The share of a source is its score over the sum of the scores of all candidate sources. Candidates are all positions but those
that are ignored. Scores that are small beside the largest of the part of the answer are noise that adds up over a long text,
and do not count.
"""

import warnings
from collections.abc import Collection
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks.arguments import is_list
from ..errors import InvalidInputError
from .owners import stretches
from .readable import Readable

Kind = Literal["special", "template", "sink", "own"]
#: What is no source unless asked for.
IGNORED: tuple[Kind, ...] = get_args(Kind)
#: What is left out when scores are added up.
IGNORED_IN_SUMS: tuple[Kind, ...] = ("sink",)
#: A score counts if it is at least this share of the largest of the part of the answer that it is of.
THRESHOLD = 0.2
_CONTENT = "content"
_WEAK = "weak"
#: What is said of scores that were not kept, where nothing more is known of them.
REST = "rest"


def kinds(explanation: Readable) -> list[str]:
    """What each unit is: `"special"`, `"sink"`, `"own"`, `"template"`, or `"content"`, the first of these that it is.

    - special: a special token.
    - sink: token 0. Heads that have nothing to look at look there, with a beginning-of-text token or without. Larger units have
      none: `aggregate` leaves it out of its sums.
    - own: generated.
    - template: text of a chat's template. It is known for chats that `explain` wrote.
    """
    start = explanation.prompt_length
    is_template = [False] * start
    if explanation.segments is not None:
        is_template = [owner is None for owner in stretches(explanation)[:start]]
    sink = 0 if explanation.level == "token" else None
    return [
        "special" if special else "sink" if i == sink else "own" if i >= start else "template" if is_template[i] else _CONTENT
        for i, special in enumerate(explanation.special)
    ]


def checked_ignore(ignore: Collection[Kind] | None) -> frozenset[Kind]:
    """What is to be ignored.

    Raises:
        InvalidInputError: It is no collection of these words.
    """
    given = () if ignore is None else ignore
    if not (is_list(given) or isinstance(given, set | frozenset)) or not set(given) <= set(IGNORED):
        raise InvalidInputError(f"`ignore` must be a list of some of {list(IGNORED)}, possibly empty, got {ignore!r}.")
    return frozenset(given)


def as_ignore(include_special: bool | None, ignore: Collection[Kind]) -> Collection[Kind]:
    """What `include_special`, an argument of the first release, says as `ignore`; with a warning, if it is given."""
    if include_special is None:
        return ignore
    warnings.warn("`include_special` is now `ignore=()`.", FutureWarning, stacklevel=3)
    old: tuple[Kind, ...] = () if include_special else ("special",)
    return old


def ignored_positions(explanation: Readable, ignore: Collection[Kind] | None = IGNORED) -> Tensor:
    """Which units are ignored, `[S]` bool.

    Raises:
        InvalidInputError: As `checked_ignore`.
    """
    leave_out = checked_ignore(ignore)
    return torch.tensor([kind in leave_out for kind in kinds(explanation)], dtype=torch.bool)


def counted_scores(scores: Tensor, candidates: Tensor, threshold: float = THRESHOLD, *, together: bool = False) -> Tensor:
    """The scores that count, `[N, S]`: 0 at what is no candidate, and where one is small beside the largest.

    Args:
        candidates: `[S]` bool.
        threshold: What is smaller than this share of the largest does not count.
        together: Whether all rows are one part of the answer, and share the largest. False: each row is a part.
    """
    scores = scores.masked_fill(~candidates, 0)
    if not scores.numel():
        return scores
    size = scores.abs()
    return scores.masked_fill(size < threshold * (size.max() if together else size.amax(-1, keepdim=True)), 0)


def shares(scores: Tensor) -> Tensor:
    """Scores of all candidates `[..., K]` as shares: each row adds up to 1, by absolute size. A row of zeros stays so."""
    total = scores.abs().sum(-1, keepdim=True)
    return scores / total.masked_fill(total == 0, 1)


def least_counted(scores: Tensor, candidates: Tensor, *, together: bool = False) -> Tensor:
    """From which size on a score of each row counts, `[N]`; arguments as for `counted_scores`."""
    largest = scores.abs().masked_fill(~candidates, 0).amax(-1) if scores.numel() else scores.new_zeros(len(scores))
    return THRESHOLD * (largest.max().expand_as(largest) if together and len(largest) else largest)


def left_out(
    explanation: Readable, scores: Tensor, candidates: Tensor, counted: Tensor, rows: Tensor | None = None
) -> dict[str, float]:
    """What has no part in the shares, by kind, as shares of all scores of some rows, also of those that were not kept.

    Args:
        scores: These rows, `[M, S]`.
        candidates: `[S]` bool.
        counted: What `counted_scores` made of them, `[M, S]`.
        rows: Which rows of the explanation they are, if they are one part of the answer. None: all, and each is a part.

    Returns:
        Above 0 only. `"content"`: the rest of the prompt, if the sources are spans. `"weak"`: what is small beside the largest.
        `"rest"`: what was not kept, as far as it is not known to be one of the others.
    """
    size, of_unit = scores.abs().sum(0), kinds(explanation)
    found: dict[str, float] = {}
    for kind, score, is_candidate in zip(of_unit, size.tolist(), candidates.tolist()):
        if not is_candidate:
            found[kind] = found.get(kind, 0) + score
    found[_WEAK] = (size[candidates].sum() - counted.abs().sum()).item()
    total = size.sum().item()
    if explanation.rest is not None:
        rest = explanation.rest if rows is None else explanation.rest.of_rows(rows)
        least = least_counted(scores, candidates, together=rows is not None)
        for kind, sums in rest.by_kind(of_unit, candidates, least, _WEAK, REST):
            found[kind] = found.get(kind, 0) + sums.sum().item()
        total += rest.sums.sum().item()
    smallest = total * torch.finfo(size.dtype).eps * len(size)
    return {kind: score / total for kind, score in found.items() if score > smallest}
