"""The options of all metrics that perturb prompts, in one place: `MetricOptions`. Its fields are the metrics' keywords."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from ..checks.arguments import checked_generator, choice, whole_number

Scope = Literal["step", "sequence"]
_P = ParamSpec("_P")
_R = TypeVar("_R")


class MetricKeywords(TypedDict, total=False):
    """Of every metric; `MetricOptions` says what they mean."""

    level: Scope
    fixed: Tensor | None
    batch_size: int


class RandomKeywords(MetricKeywords, total=False):
    """Of a metric that draws random numbers."""

    generator: torch.Generator | None


class SourceKeywords(RandomKeywords, total=False):
    """Of a metric that takes sources out of a prompt."""

    sources: Tensor | None


class SamplingKeywords(RandomKeywords, total=False):
    """Of a metric that is a mean over random draws."""

    num_samples: int


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricOptions:
    """How a metric perturbs prompts. Each metric takes some of these options as keywords; its signature shows which.

    Args:
        level: `"step"`: every generated token is measured by itself, and the mean is taken. `"sequence"`: all tokens are
            measured together, with the mean of their scores. Then distances are those of their joint distribution (see
            `joint_hellinger`), and probabilities are replaced by their geometric mean (the joint probability, per token).
        fixed: True for prompt positions that are never perturbed (special tokens, say), `[P]` or `[R, P]`.
        batch_size: Texts per forward pass.
        generator: Source of randomness, on the CPU; None: one with seed 0. From the same state the same numbers are drawn, with
            any attributions, batch size and device, and all methods share them. Where the order of scores counts, equal ones
            are put in a random order.
        sources: What is taken out as a whole: the number of the source (sentence, document) of each prompt position, `[P]` or
            `[R, P]`; -1 for positions that always stay. A source scores the sum of its positions. None: every token by itself.
        num_samples: Random draws, over which a metric is averaged.

    Raises:
        InvalidInputError: An option is unknown or out of range.
    """

    level: Scope = "step"
    fixed: Tensor | None = None
    batch_size: int = 16
    generator: torch.Generator | None = None
    sources: Tensor | None = None
    num_samples: int = 4

    def __post_init__(self) -> None:
        choice("level", self.level, get_args(Scope))
        checked_generator(self.generator)
        for name in ("batch_size", "num_samples"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))


def takes_options(metric: Callable[_P, _R]) -> Callable[_P, _R]:
    """Shows the keywords that a metric's `**options: Unpack[...]` stands for in its signature, and refuses all others."""
    *own, options = inspect.signature(metric).parameters.values()
    (keywords,) = get_args(options.annotation)
    defaults = {field.name: field.default for field in fields(MetricOptions)}
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind)
        for name, kind in get_type_hints(keywords).items()
    ]
    signature = inspect.signature(metric).replace(parameters=[*own, *shown])

    @functools.wraps(metric)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{metric.__name__}() {error}") from None
        return metric(*args, **kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call
