"""What pictures, tables and units need to know of an explanation: a protocol, so that they do not import the class."""

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .image_patches import ImagePatches
from .rest import Rest
from .segments import Segment

Level = Literal["token", "word", "sentence", "paragraph", "message"]


class Contribution(NamedTuple):
    """What one position contributed to a generated unit. `token`: its text, or the name of a named span."""

    position: int
    token: str
    score: float


class Tokenised(Protocol):
    """A text in pieces, of which the first `prompt_length` are the prompt; `Explanation` describes the members."""

    @property
    def tokens(self) -> list[str]: ...
    @property
    def prompt_length(self) -> int: ...
    @property
    def special(self) -> list[bool]: ...
    @property
    def text(self) -> str: ...
    @property
    def segments(self) -> list[Segment] | None: ...
    @property
    def images(self) -> list[ImagePatches] | None: ...


class Readable(Tokenised, Protocol):
    """A text with a heatmap for every generated piece of it; `Explanation` describes the members."""

    @property
    def token_ids(self) -> list[int] | None: ...
    @property
    def attributions(self) -> Tensor: ...
    @property
    def token_probabilities(self) -> Tensor: ...
    @property
    def target_scores(self) -> Tensor | None: ...
    @property
    def layer_attributions(self) -> Tensor | None: ...
    @property
    def layers(self) -> list[int] | None: ...
    @property
    def layer_names(self) -> list[str] | None: ...
    @property
    def model_name(self) -> str | None: ...
    @property
    def explain_config(self) -> Any: ...
    @property
    def level(self) -> str: ...
    @property
    def unit_names(self) -> list[str | None] | None: ...
    @property
    def foil(self) -> str | None: ...
    @property
    def explained(self) -> list[bool] | None: ...
    @property
    def rest(self) -> Rest | None: ...
    @property
    def layer_rest(self) -> Rest | None: ...
    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str: ...
    def units(self, level: Level) -> list[tuple[int, int]]: ...
    def aggregate(self, by: Level) -> "Readable": ...


def explained_rows(explanation: Readable) -> list[int]:
    """The generated units that have a heatmap: all of them, unless only some steps were asked for."""
    if explanation.explained is None:
        return list(range(len(explanation.tokens) - explanation.prompt_length))
    return [row for row, is_explained in enumerate(explanation.explained) if is_explained]


def earlier_positions(
    prompt_length: int, num_steps: int, length: int, *, own: bool = False, device: torch.device | str = "cpu"
) -> Tensor:
    """Which of `length` positions come before each generated one, `[N, length]` bool.

    Args:
        prompt_length: `P`: generated token `n` is at position `P + n`.
        num_steps: `N`.
        length: Number of positions.
        own: Whether a generated position also counts as before itself. It does for larger units, whose later tokens rest on
            their earlier ones.
    """
    return torch.ones(num_steps, length, dtype=torch.bool, device=device).tril(prompt_length - 1 + own)
