"""What each part of an answer loses when its strongest sources are taken out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

from ..visualization.terminal import visible
from .sources import Part, Source, shortened


@dataclass(frozen=True)
class Removal:
    """A part of an answer, measured without its strongest sources.

    Attributes:
        part: The part, with its sources.
        removed: The sources that were taken out.
        loss: By how much the log-probability of the part falls without them, in nats. Negative: it becomes more likely.
        other_losses: The same when as many tokens of the rest of the prompt are taken out, for up to three stretches of it;
            empty if there are not as many.
    """

    part: Part
    removed: list[Source]
    loss: float
    other_losses: list[float]

    @property
    def other_loss(self) -> float | None:
        """The mean of `other_losses`."""
        return sum(self.other_losses) / len(self.other_losses) if self.other_losses else None


@dataclass(frozen=True, repr=False)
class Removals(Sequence[Removal]):
    """A sequence of removals, one for each part of an answer. Printed, it is a list to read.

    Attributes:
        removals: In the order of the text.

    Examples:
        >>> removals = GradELLM(model, tokenizer).removal_test(explanation, by="word", of="answer")
        >>> len(removals), len(removals[0].removed)
        (1, 1)
    """

    removals: list[Removal]

    def __len__(self) -> int:
        return len(self.removals)

    @overload
    def __getitem__(self, index: int) -> Removal: ...
    @overload
    def __getitem__(self, index: slice) -> list[Removal]: ...
    def __getitem__(self, index: int | slice) -> Removal | list[Removal]:
        return self.removals[index]

    def to_dict(self) -> list[dict[str, Any]]:
        """The same as JSON values.

        Examples:
            >>> removals = GradELLM(model, tokenizer).removal_test(explanation, by="word", of="answer")
            >>> list(removals.to_dict()[0])
            ['part', 'removed', 'loss', 'other_losses']
        """
        return [asdict(removal) for removal in self.removals]

    def __str__(self) -> str:
        return "\n".join(map(_lines, self.removals))

    __repr__ = __str__


def _lines(removal: Removal) -> str:
    names = ", ".join(visible(shortened(source.name or source.text)) for source in removal.removed) or "nothing"
    other = removal.other_loss
    beside = "" if other is None else f"; {other:.1f} without as many other tokens"
    return f"{visible(shortened(removal.part.text))}\n  loses {removal.loss:.1f} nats without {names}{beside}"
