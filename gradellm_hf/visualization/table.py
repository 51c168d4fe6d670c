"""Explanations as a long table, one row per step and position before that step."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ..checks.optional import needed_for
from ..text.readable import Readable, earlier_positions
from ..text.shares import counted_scores, ignored_positions, kinds, shares

if TYPE_CHECKING:
    from pandas import DataFrame


def table(explanations: Iterable[Readable]) -> "DataFrame":
    """One table of several sequences; see `gradellm_hf.interchange.to_dataframe`.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    with needed_for("Tables need", "pandas"):
        import pandas
    parts = [_columns(i, explanation) for i, explanation in enumerate(explanations)]
    names = list(dict.fromkeys(name for part in parts for name in part))
    whole: DataFrame = pandas.concat([pandas.DataFrame(part) for part in parts], ignore_index=True)[names]
    return whole


def _columns(sequence: int, explanation: Readable) -> dict[str, Any]:
    import numpy

    seen = earlier_positions(explanation.prompt_length, *explanation.attributions.shape, own=explanation.token_ids is None)
    if explanation.explained is not None:
        seen &= torch.tensor(explanation.explained, dtype=torch.bool)[:, None]
    if explanation.rest is not None:
        seen &= explanation.attributions != 0
    steps, positions = (x.numpy() for x in seen.nonzero(as_tuple=True))
    tokens, prompt_length = numpy.array(explanation.tokens, dtype=object), explanation.prompt_length
    targets, names, rest = explanation.target_scores, explanation.unit_names, explanation.rest
    share = shares(counted_scores(explanation.attributions, ~ignored_positions(explanation)))
    return {
        "sequence": numpy.full(len(steps), sequence),
        "step": steps,
        "generated_position": prompt_length + steps,
        "generated_token": tokens[prompt_length + steps],
        "probability": explanation.token_probabilities.numpy()[steps],
        **({} if targets is None else {"target_score": targets.numpy()[steps]}),
        "position": positions,
        "token": tokens[positions],
        **({} if names is None else {"name": numpy.array(names, dtype=object)[positions]}),
        "score": explanation.attributions.numpy()[steps, positions],
        "share": share.numpy()[steps, positions],
        **({} if rest is None else {"rest": rest.total.numpy()[steps]}),
        "kind": numpy.array(kinds(explanation), dtype=object)[positions],
        "in_prompt": positions < prompt_length,
        "special": numpy.array(explanation.special, dtype=bool)[positions],
    }
