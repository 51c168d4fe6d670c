"""What changes in a model's predictions when one token is left out."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..architecture.caches import prompt_cache
from ..architecture.compat import cache_of
from ..architecture.facts import ModelFacts
from ..metrics.perturbation import hellinger
from ..sequences.explained import ExplainedSequences


@torch.no_grad()
def leave_one_out(facts: ModelFacts, text: ExplainedSequences, sources: Tensor, batch_size: int) -> tuple[Tensor, Any]:
    """Hellinger distances of the next-token distributions, with one source's embedding as it is and set to 0.

    What comes before a source does not change, so only the text from the source on runs again, on the keys and values of the
    unchanged text. Sources are taken in batches that begin with the first of them.

    Args:
        text: One row.
        sources: Positions, ascending, `[K]`.
        batch_size: How many are left out per forward pass.

    Returns:
        `[N, K]`: for each generated token and each source, 0 if the token was predicted before the source; and the cache of the
        unchanged text.
    """
    end, steps, device = text.length - 1, text.num_steps, text.token_ids.device
    embeddings = facts.model.get_input_embeddings()(text.token_ids).detach()
    whole = replace(text, prompt_length=text.length, num_steps=0, prompt_embeds=embeddings)
    keep = {"logits_to_keep": steps} if "logits_to_keep" in facts.parameters else {}
    outputs = whole.forward(facts, 0, end, None, **keep)
    expected, cache = _log_probabilities(outputs, steps), cache_of(outputs)
    effects = torch.zeros(steps, len(sources), dtype=torch.float64)
    for columns in torch.arange(len(sources)).split(batch_size):
        left_out = sources[columns].to(device)
        rows, begin = len(left_out), int(left_out[0])
        prefix = prompt_cache(cache, begin, torch.zeros(rows, dtype=torch.long, device=device))
        without = embeddings.repeat(rows, 1, 1)
        without[torch.arange(rows, device=device), left_out] = 0
        ablated = replace(whole, token_ids=text.token_ids.repeat(rows, 1), prompt_embeds=without)
        outputs = ablated.forward(facts, 0 if prefix is None else begin, end, prefix, **keep)
        later = min(steps, end - begin)
        distances = hellinger(expected[:, steps - later :], _log_probabilities(outputs, later))
        effects[steps - later :, columns] = distances.mT.to(effects)
    return effects, cache


def _log_probabilities(outputs: Any, last: int) -> Tensor:
    logits: Tensor = outputs.logits[:, -last:]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
