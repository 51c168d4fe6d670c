"""How long a text may get for a model that looks its positions up in a table. Most models compute them and have no limit."""

from ..architecture.facts import ModelFacts
from ..errors import InvalidInputError


class PositionRoom:
    """The positions that a model knows, and how many of them a prompt takes.

    Args:
        facts: The model.
        prompt_length: Positions that the longest prompt takes. Padding counts only if the model counts it.
    """

    def __init__(self, facts: ModelFacts, prompt_length: int):
        self._model_type, self._limit, self._prompt_length = facts.model_type, facts.position_limit, prompt_length

    def fits(self, num_steps: int) -> bool:
        """Whether the model can read the prompt and all that is written in so many steps except the last token."""
        return self._limit is None or self._needed(num_steps) <= self._limit

    def check(self, num_steps: int) -> None:
        """Raises InvalidInputError if they do not fit."""
        if self._limit is None or self.fits(num_steps):
            return
        room = self._limit - self._prompt_length + 1
        advice = f"Write at most {room} tokens after this prompt, or shorten it." if room > 0 else "Shorten the prompt."
        new = f" and {num_steps} new ones" if num_steps > 1 else ""
        raise InvalidInputError(
            f"A prompt of {self._prompt_length} tokens{new} need {self._needed(num_steps)} positions, but `{self._model_type}` "
            f"knows only {self._limit} positions: it looks them up in a table. {advice}"
        )

    def _needed(self, num_steps: int) -> int:
        return self._prompt_length + max(num_steps, 1) - 1  # the last token is not read
