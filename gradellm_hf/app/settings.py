"""What a user may set: how the model writes, and how its answers are explained."""

from dataclasses import dataclass
from typing import Any

from ..checks.arguments import real_number, true_or_false, whole_number
from ..configuration import GradELLMConfig

MOST_NEW_TOKENS = 512


@dataclass(frozen=True)
class Settings:
    """Settings of one question.

    Args:
        max_new_tokens: The answer's length at most, in tokens.
        do_sample: Sample, or take the likeliest token.
        temperature, top_p: Of sampling.
        last_layers: Explain so many of the last layers; 0: all.
        head_weights: What `GradELLMConfig` takes as such.
        system: A message before the chat; empty: none.

    Raises:
        InvalidInputError: A number is out of its range.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 0.7
    top_p: float = 0.95
    last_layers: int = 0
    head_weights: Any = None
    system: str = ""

    def __post_init__(self) -> None:
        for name, low in (("max_new_tokens", 1), ("last_layers", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), low))
        true_or_false("do_sample", self.do_sample)
        real_number("temperature", self.temperature, "a number from 0.01 to 10", 0.01, 10)
        real_number("top_p", self.top_p, "a number from 0.01 to 1", 0.01, 1)

    def generate_kwargs(self) -> dict[str, Any]:
        """Arguments of `generate`, but for its length."""
        if not self.do_sample:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": float(self.temperature), "top_p": float(self.top_p)}

    def explain_config(self, *, positive_only: bool = True) -> GradELLMConfig:
        """How answers are explained.

        Raises:
            InvalidInputError: The head weights are not usable.
        """
        return GradELLMConfig(layers=self.last_layers or "all", head_weights=self.head_weights, positive_only=positive_only)
