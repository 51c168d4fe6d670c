"""How long a text may get for a model that looks its positions up in a table. Most models compute them and have no limit."""

from itertools import chain
from typing import Any

from torch import nn

from ..errors import InvalidInputError

_TABLE_IN_EACH_CALL = {"mpt": "max_seq_len"}  # the table is made in each call, of the size in this entry of the config


class PositionRoom:
    """The positions that a model knows, and how many of them a prompt takes.

    Args:
        model: The model.
        prompt_length: Positions that the longest prompt takes. Padding counts only if the model counts it.
    """

    def __init__(self, model: Any, prompt_length: int):
        self._model_type, self._limit, self._prompt_length = model.config.model_type, position_limit(model), prompt_length

    def fits(self, num_steps: int) -> bool:
        """Whether the model can read the prompt and all that is written in so many steps except the last token."""
        return self._limit is None or self._needed(num_steps) <= self._limit

    def check(self, num_steps: int) -> None:
        """Raises InvalidInputError if they do not fit."""
        if self.fits(num_steps):
            return
        room = self._limit - self._prompt_length + 1  # type: ignore[operator]
        advice = f"Write at most {room} tokens after this prompt, or shorten it." if room > 0 else "Shorten the prompt."
        new = f" and {num_steps} new ones" if num_steps > 1 else ""
        raise InvalidInputError(
            f"A prompt of {self._prompt_length} tokens{new} need {self._needed(num_steps)} positions, but `{self._model_type}` "
            f"knows only {self._limit} positions: it looks them up in a table. {advice}"
        )

    def _needed(self, num_steps: int) -> int:
        return self._prompt_length + max(num_steps, 1) - 1  # the last token is not read


def position_limit(model: Any) -> int | None:
    """Number of positions in the model's table of them, learned or fixed; None if it computes any position."""
    config = model.config.get_text_config(decoder=True)
    if (name := _TABLE_IN_EACH_CALL.get(config.model_type)) is not None:
        return getattr(config, name)
    limit = getattr(config, "max_position_embeddings", None)
    embeddings = (
        (name, module.num_embeddings - getattr(module, "offset", 0))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    )
    buffers = ((name, buffer.shape[0]) for name, buffer in model.named_buffers() if buffer.ndim == 2)
    tables = (size for name, size in chain(embeddings, buffers) if _names_positions(name.rpartition(".")[2]))
    return limit if limit in tables else None


def _names_positions(name: str) -> bool:
    return "pos" in name or name == "wpe"
