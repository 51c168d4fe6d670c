"""What an answer loses without its sources: measured, beside what their shares claim."""

from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInputError
from ..results.explanation import Explanation
from ..results.removals import Removal, Removals
from ..results.sources import Part, Sources
from ..text.owners import owners
from ..text.shares import IGNORED, ignored_positions
from .perturbation import PerturbedText, Window

_STRETCHES = 3  # of the rest of the prompt: enough to see whether they matter as much


def removal_test(model: Any, explanation: Explanation, sources: Sources, k: int, batch_size: int) -> Removals:
    """See `GradELLM.removal_test`. `sources`: of this explanation, all of each part."""
    if explanation.level != "token" or explanation.token_ids is None:
        raise InvalidInputError(
            f"The model reads tokens, and the units are {explanation.level}s. Give what `explain` returned."
        )
    if explanation.images:
        raise InvalidInputError(
            "The prompt has images, and the test would read it without them. It is for prompts of text; what the model needs "
            "of a picture shows in what it says to one with a part painted over."
        )
    tokens = torch.tensor([explanation.token_ids])
    text = PerturbedText(model, tokens, explanation.prompt_length, batch_size=batch_size)
    border, device = explanation.prompt_length, text.token_ids.device
    ignored = ignored_positions(explanation, IGNORED)[:border]
    ignored[[0, -1]] = True  # from the last one the first token is predicted
    plans = [_removed(explanation, part, k, ignored) for part in sources]
    keeps = [~mask for masks in plans for mask in masks]
    window = Window(0, text.num_steps)
    targets = text.token_ids[0, border:]

    def chosen(_: Tensor, log_probabilities: Tensor) -> Tensor:
        return log_probabilities.gather(-1, targets.expand(len(log_probabilities), -1)[..., None])[..., 0]

    keep = torch.stack([torch.ones(border, dtype=torch.bool), *keeps]).to(device)
    rows = torch.zeros(len(keep), dtype=torch.long, device=device)
    values = text.measure(rows, window, lambda items: keep[items], chosen, "drop").double().cpu()
    losses = iter(values[0] - values[1:])
    found = []
    for part, masks in zip(sources, plans):
        steps = [owner is not None for owner in owners(explanation, [(part.start, part.end)])[border:]]
        first, *others = [next(losses)[steps].sum().item() for _ in masks]
        found.append(Removal(part, part.sources[:k], first, others))
    return Removals(found)


def _removed(explanation: Explanation, part: Part, k: int, ignored: Tensor) -> list[Tensor]:
    """Masks `[P]` of what is taken out: first the strongest sources, then stretches of as many other tokens."""
    owner = owners(explanation, [(source.start, source.end) for source in part.sources[:k]])
    strongest = torch.tensor([i is not None for i in owner[: len(ignored)]]) & ~ignored
    others = (~ignored & ~strongest).nonzero()[:, 0]
    size, masks = int(strongest.sum()), [strongest]
    if 0 < size <= len(others):
        for start in torch.linspace(0, len(others) - size, _STRETCHES).long().unique().tolist():
            mask = torch.zeros_like(strongest)
            mask[others[start : start + size]] = True
            masks.append(mask)
    return masks
