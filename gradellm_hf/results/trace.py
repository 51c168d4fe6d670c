"""What generated tokens rest on in the prompt, directly and through the text that was generated before them."""

import torch
from torch import Tensor

from ..errors import InvalidInputError
from ..text.readable import Readable, explained_rows
from ..text.shares import counted_scores, least_counted, shares


def traced(explanation: Readable) -> Tensor:
    """`(I - A_G)^-1 A_P` of `Explanation.trace`, `[N, S]` float32: over the prompt, and 0 over the generated text.

    `A_G` is strictly lower triangular: a token comes after all that it rests on. So the inverse is a sum of finitely many
    powers, and is had by one triangular solve, in float64.

    Raises:
        InvalidInputError: The units are not tokens, one that is not explained comes before an explained one, or scores that
            count were not kept.
    """
    if explanation.level != "token":
        raise InvalidInputError(f"The units are {explanation.level}s. Trace the explanation of tokens, then `aggregate`.")
    known = explained_rows(explanation)
    if known != list(range(len(known))):
        raise InvalidInputError(
            "The trace goes through all generated tokens before an explained one, and not all of these are explained. Explain "
            "without `steps`, or from the first step on: `steps=slice(0, 100)`."
        )
    border = explanation.prompt_length
    is_sink = torch.arange(len(explanation.tokens)) == 0  # it holds most of many rows, and says nothing
    scores, rest = explanation.attributions.double(), explanation.rest
    if rest is not None and rest.may_count(~is_sink, least_counted(scores, ~is_sink)).any():
        raise InvalidInputError(
            'Scores that count in the trace were not kept. Trace the whole explanation, or one that is kept with keep="top".'
        )
    rows = shares(counted_scores(scores, ~is_sink))
    from_prompt, from_generated = rows[:, :border], rows[:, border:]
    identity = torch.eye(len(rows), dtype=rows.dtype)
    rested = torch.linalg.solve_triangular(identity - from_generated.tril(-1), from_prompt, upper=False, unitriangular=True)
    return torch.cat([rested, torch.zeros_like(from_generated)], dim=-1).float()
