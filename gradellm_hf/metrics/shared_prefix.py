"""What texts have in common with the unchanged one is run once."""

from typing import Any

import torch
from torch import Tensor

from ..architecture.caches import prompt_cache
from ..architecture.compat import cache_of
from ..architecture.facts import ModelFacts
from ..architecture.tolerances import REPLAYED_LOGITS, logits_difference


def run(
    facts: ModelFacts,
    embeddings: Tensor,
    real: Tensor,
    positions: Tensor,
    num_last: int,
    cache: Any = None,
    *,
    use_cache: bool = False,
) -> Any:
    """Runs a model over embeddings, for the logits of the last of them.

    Args:
        real: False for padding; also of the positions before, if `cache` holds these.
        use_cache: Whether the output is to have a cache.
    """
    optional: dict[str, Any] = {"position_ids": positions, "use_cache": use_cache, "logits_to_keep": num_last}
    if cache is not None:
        optional |= {facts.cache_argument: cache, "use_cache": True}
        optional["cache_position"] = torch.arange(real.shape[1], device=real.device)[-embeddings.shape[1] :]
    kwargs = {name: value for name, value in optional.items() if name in facts.parameters}
    return facts.model(inputs_embeds=embeddings, attention_mask=real.long(), return_dict=True, **kwargs)


class SharedPrefix:
    """Keys and values of the unchanged texts, on which a text that differs from them only from some position on can go on.

    They are used if the model gives the same logits when it reads the second half of the unchanged texts on them.

    Args:
        facts: The model.
        embeddings: Of the unchanged texts, `[R, T, E]`.
        real: False for padding, `[R, T]`.
        positions: `[R, T]`.
    """

    def __init__(self, facts: ModelFacts, embeddings: Tensor, real: Tensor, positions: Tensor):
        self._facts, self._texts = facts, (embeddings, real, positions)
        self._cache: Any = None
        self._is_read = not {facts.cache_argument, "use_cache"} <= facts.parameters

    def cache(self, rows: Tensor, length: int) -> Any | None:
        """The first positions of some rows, as a cache of its own; None if it cannot be used."""
        if not self._is_read:
            self._is_read, self._cache = True, self._read()
        return None if self._cache is None else prompt_cache(self._cache, length, rows)

    @torch.no_grad()
    def _read(self) -> Any | None:
        embeddings, real, positions = self._texts
        half, rows = embeddings.shape[1] // 2, torch.arange(len(real), device=real.device)
        outputs = run(self._facts, *self._texts, 1, use_cache=True)
        cache = cache_of(outputs)
        first_half = prompt_cache(cache, half, rows)
        if first_half is None:
            return None
        again = run(self._facts, embeddings[:, half:], real, positions[:, half:], 1, first_half)
        difference = logits_difference(again.logits[:, -1], outputs.logits[:, -1])
        return cache if difference <= REPLAYED_LOGITS.of(outputs.logits.dtype) else None
