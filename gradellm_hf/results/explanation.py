"""One explained sequence that people can read: its pieces of text and the heatmap of every generated one."""

import dataclasses
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from torch import Tensor

from ..checks.arguments import choice, numbers, whole_number
from ..checks.files import TensorFile, reading, write_atomically, write_tensors
from ..checks.schema import Natural, TensorKind, TokenId, check, check_tensors, field_types, known_fields
from ..configuration import GradELLMConfig, checked_config, stored_config
from ..errors import InvalidInputError
from ..text.readable import Contribution, Level
from ..text.units import Spans, Unit, merged, span_ranges, unit_ranges

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

UnitLevel = Literal["token", "word", "sentence", "span"]
FORMAT = "gradellm_hf.explanation"
FORMAT_VERSION = 2  # since checksums are written, which releases that read version 1 do not expect
_FLOAT = (torch.float32,)
_TENSORS = {
    "attributions": TensorKind("NS", _FLOAT),
    "token_probabilities": TensorKind("N", _FLOAT, (0, 1.001)),  # one, up to rounding
    "target_scores": TensorKind("N", _FLOAT, optional=True),
    "layer_attributions": TensorKind("LNS", _FLOAT, optional=True),
}
_WRITER = "Explanation.save"


@dataclass(frozen=True, eq=False)
class Explanation:
    """A text with a heatmap for every generated piece of it.

    `S` units (tokens, or what `aggregate` made of them), the first `P` of them the prompt, `N = S - P` generated, `L`
    explained layers. Generated unit `n` is at position `P + n`. There is no padding, and nothing after the text's end.

    Attributes:
        tokens: `S` pieces of text; joined, they are `text`. Where several tokens make up one character, the first of them
            holds it and the others are `""`.
        token_ids: `S` token ids; None where the units are not tokens.
        prompt_length: `P`.
        attributions: `[N, S]`, float32: how much each unit contributed to each generated one.
        token_probabilities: `[N]`: the model's probability of each generated unit, given all before it.
        text: The whole text, special tokens included.
        special: `S` bools: template markers, beginning and end of text, placeholders.
        target_scores: `[N]`: the explained scalar; by default the raw logit of the token.
        layer_attributions: `[L, N, S]`: the heatmap of each layer, where recorded.
        layers: The explained layers, as indices of the model's attention layers.
        layer_names: The names of their modules.
        model_name: The model's name.
        explain_config: How it was explained.
        level: What the units are: `"token"`, `"word"`, `"sentence"` or `"span"`.
        unit_names: `S` names of the spans that `aggregate` was given; None for a unit without a name.

    Raises:
        InvalidInputError: Shapes or texts do not fit together, or a score is not finite.
    """

    tokens: list[str]
    token_ids: list[TokenId] | None
    prompt_length: Natural
    attributions: Tensor
    token_probabilities: Tensor
    text: str
    special: list[bool]
    target_scores: Tensor | None = None
    layer_attributions: Tensor | None = None
    layers: list[Natural] | None = None
    layer_names: list[str] | None = None
    model_name: str | None = None
    explain_config: GradELLMConfig | None = None
    level: UnitLevel = "token"
    unit_names: list[str | None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_length", whole_number("prompt_length", self.prompt_length, 0))
        this: Any = type(self)
        for name, kind in field_types(this).items():
            if name not in (*_TENSORS, "explain_config"):
                check(getattr(self, name), kind, f"`{name}`")
        checked_config("explain_config", self.explain_config)
        length = len(self.tokens)
        if self.prompt_length > length:
            raise InvalidInputError(f"`prompt_length` is {self.prompt_length}, but there are {length} units.")
        tensors = {name: x for name in _TENSORS if (x := getattr(self, name)) is not None}
        for name, value in tensors.items():
            tensors[name] = numbers(name, value, "a tensor of numbers").detach().to("cpu", torch.float32)
            object.__setattr__(self, name, tensors[name])
        sizes = {"S": length, "N": length - self.prompt_length} | ({} if self.layers is None else {"L": len(self.layers)})
        sources = {"S": "`tokens`", "N": "`prompt_length`"} | ({} if self.layers is None else {"L": "`layers`"})
        check_tensors(tensors, _TENSORS, sizes, sources)
        if None not in (self.layers, self.layer_names) and len(self.layers) != len(self.layer_names):  # type: ignore[arg-type]
            raise InvalidInputError(f"`layers` and `layer_names` differ in length: {self.layers}, {self.layer_names}.")
        for name in ("token_ids", "special", "unit_names"):
            value = getattr(self, name)
            if value is not None and len(value) != length:
                raise InvalidInputError(f"`{name}` must have an entry for each of the {length} units, got {len(value)}.")
        if "".join(self.tokens) != self.text:
            raise InvalidInputError("`tokens` do not join to `text`.")

    @classmethod
    def from_output(cls, output: Any, row: int, tokenizer: Any) -> "Explanation":
        """The old name of `ExplainGenerateOutput.explanation(row, tokenizer)`, for one more release."""
        message = "`Explanation.from_output(output, row, tokenizer)` is now `output.explanation(row, tokenizer)`."
        warnings.warn(message, FutureWarning, stacklevel=2)
        if not hasattr(output, "explanation"):
            raise InvalidInputError(f"`output` must be an ExplainGenerateOutput, got {type(output).__name__}.")
        return output.explanation(row, tokenizer)

    def units(self, level: Level, generated: Level | None = None) -> list[Unit]:
        """Half-open ranges of tokens that cover the sequence in order, never across the border of the prompt.

        - `"token"`: tokens that make up one character are one unit.
        - `"word"`: letters, digits and combining marks in a row, with apostrophes inside (`don't`) and points inside numbers
          (`3.14`). Each Han character is a word; kana, Thai and others that are written without spaces are not split.
          Punctuation in a row is a unit, each emoji with its modifiers another. Spaces belong to what follows; line
          breaks stand alone.
        - `"sentence"`: ends at `.`, `!`, `?` or `…` before white space, at the full stops of Chinese, Japanese, Arabic, Urdu
          and Hindi, and at line breaks. Abbreviations are not known: `Dr. Smith` is cut.

        A special token is a unit of its own. A token that holds the end of a unit and the beginning of the next joins them.

        Args:
            level: The units of the prompt.
            generated: Those of the generated text, where they differ.

        Raises:
            InvalidInputError: There is no such level.
        """
        return unit_ranges(self, level, generated)

    def aggregate(self, by: Level | Spans, *, generated: Level | None = None) -> "Explanation":
        """Larger units: scores are summed over the tokens of a unit, contributing and generated ones alike.

        A generated unit can then contribute to itself: its later tokens rest on its earlier ones.

        Args:
            by: `"word"`, `"sentence"` or `"token"` (see `units`), or spans of the prompt: `{name: span}` or a list of spans,
                each a pair (start, end) of character offsets in `text` or a substring that occurs once in the prompt.
                What lies between spans becomes units of its own, special tokens apart. See `unit_names`.
            generated: The units of the generated text; the same level, or tokens where `by` are spans.

        Raises:
            InvalidInputError: There is no such level, or a span is not in the prompt, ambiguous, or overlaps another.
        """
        if isinstance(by, str):
            level: Any = by
            names = None
            units = unit_ranges(self, by, generated)  # type: ignore[arg-type]
        else:
            level = "span"
            units, span_names = span_ranges(self, by)
            tail = [unit for unit in unit_ranges(self, "token", generated) if unit[0] >= self.prompt_length]
            names = [*span_names, *[None] * len(tail)]
            units += tail
        return dataclasses.replace(self, **merged(self, units), level=level, unit_names=names)

    def normalize(self, by: Literal["max", "sum"] = "max") -> "Explanation":
        """Scores divided, step by step, by the largest absolute score or by the sum of absolute scores.

        A step without scores stays zero. Layers are divided by the same number as their sum.

        Raises:
            InvalidInputError: There is no such normalisation.
        """
        choice("by", by, ("max", "sum"))
        size = self.attributions.abs()
        total = size.amax(-1, keepdim=True) if by == "max" else size.sum(-1, keepdim=True)
        total = total.masked_fill(total == 0, 1)
        layers = self.layer_attributions
        return dataclasses.replace(
            self,
            attributions=self.attributions / total,
            layer_attributions=None if layers is None else layers / total,
        )

    def top(self, step: int, k: int = 10, *, include_special: bool = False) -> list[Contribution]:
        """The units that contributed most to generated unit `step`, strongest first; those with a score of 0 are left out.

        Args:
            step: 0 to `N - 1`; negative ones count from the end.
            k: At most so many, 0 or more.
            include_special: Whether special tokens count.

        Returns:
            Their positions, texts and scores. Negative scores rank by their size.

        Raises:
            InvalidInputError: There is no such step, or `k` is no number of units.
        """
        step, k = whole_number("step", step), whole_number("k", k, 0)
        num_steps = len(self.attributions)
        if not -num_steps <= step < num_steps:
            raise InvalidInputError(f"There is no step {step}: {num_steps} steps are explained.")
        scores = self.attributions[step]
        size = scores.abs().clone()
        if not include_special:
            size[torch.tensor(self.special, dtype=torch.bool)] = 0
        order = size.argsort(descending=True, stable=True)[:k].tolist()
        return [Contribution(i, self.tokens[i], scores[i].item()) for i in order if size[i] > 0]

    def to_dataframe(self) -> "DataFrame":
        """A long table, one row a step and position before it; see `gradellm_hf.interchange.to_dataframe`."""
        from ..visualization.table import table

        return table([self])

    def to_html(self, path: str | os.PathLike[str] | None = None, **options: Any) -> str:
        """A self-contained interactive page, also written to `path` where given; see `visualization.html.report`."""
        from ..visualization.html import report

        page = report(self, **options)
        if path is not None:
            write_atomically(path, page.encode())
        return page

    def plot(self, path: str | os.PathLike[str] | None = None, **options: Any) -> "Figure":
        """A matplotlib figure, also written to `path` where given; see `visualization.plot.plot_heatmap`."""
        from ..visualization.plot import plot_heatmap

        return plot_heatmap(self, path, **options)

    def render(self, **options: Any) -> str:
        """Lines for a terminal; see `visualization.terminal.render`."""
        from ..visualization.terminal import render

        return render(self, **options)

    def _repr_html_(self) -> str:
        from ..visualization.html import snippet

        return snippet(self)

    def __repr__(self) -> str:
        generated = "".join(self.tokens[self.prompt_length :])
        return (
            f"Explanation({len(self.attributions)} generated {self.level}s from {self.prompt_length}, "
            f"model={self.model_name!r}, generated={generated if len(generated) < 80 else generated[:77] + '...'!r})"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one `.safetensors` file, atomically. It is read without the model, its tokenizer or pickle."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        config = values.pop("explain_config")
        tensors = {name: value for name in _TENSORS if (value := values.pop(name)) is not None}
        metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, **values}
        write_tensors(path, tensors, {**metadata, "explain_config": None if config is None else config.to_dict()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Explanation":
        """Reads a file that `save` wrote. A configuration with a callable target cannot be read back: it is None.

        Raises:
            FileNotFoundError: There is no such file.
            InvalidInputError: It is not such a file, damaged, or of a format version that this release does not know.
        """
        file = TensorFile(path, _WRITER)
        file.check_format(FORMAT, FORMAT_VERSION)
        with reading(path):
            check(file.metadata, _Metadata, "the metadata")
            tensors = file.tensors(_TENSORS)
            check_tensors(tensors, _TENSORS, {})
            fields = {**known_fields(file.metadata, cls), **tensors}
            return cls(**{**fields, "explain_config": stored_config(fields["explain_config"])})


class _Metadata(TypedDict):
    """What the metadata of a file must have besides `format` and `format_version`; `Explanation` looks at the rest."""

    tokens: list[str]
    token_ids: Any
    prompt_length: Any
    text: Any
    special: Any
    explain_config: dict[str, Any] | None
