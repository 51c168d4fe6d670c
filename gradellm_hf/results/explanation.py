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

    `S` units: tokens, or what `aggregate` made of them. The first `P` of them are the prompt, the other `N = S - P` are
    generated. Generated unit `n` is at position `P + n`. `L` layers are explained. There is no padding, and nothing after the
    end of the text.

    Attributes:
        tokens: `S` pieces of text; joined, they are `text`. If several tokens make up one character, the first of them has
            it and the others are `""`.
        token_ids: `S` token ids; None if the units are not tokens.
        prompt_length: `P`.
        attributions: `[N, S]`, float32: how much each unit contributed to each generated one.
        token_probabilities: `[N]`: the model's probability of each generated unit, given all before it.
        text: The whole text, special tokens included.
        special: `S` bools: template markers, beginning and end of text, placeholders.
        target_scores: `[N]`: the explained scalar; by default the raw logit of the token.
        layer_attributions: `[L, N, S]`: the heatmap of each layer; None if they were not recorded.
        layers: The explained layers, as indices of the model's attention layers.
        layer_names: The names of their modules.
        model_name: The model's name.
        explain_config: How it was explained.
        level: What the units are: `"token"`, `"word"`, `"sentence"` or `"span"`.
        unit_names: `S` names of the spans that `aggregate` was given; None for a unit without a name.

    Raises:
        InvalidInputError: Shapes or texts do not fit together, or a score is not finite.

    Examples:
        >>> explanation = GradELLM(model, tokenizer).explain("The capital of Italy is", target=" Rome")
        >>> explanation.tokens[explanation.prompt_length]  # generated unit 0
        ' Rome'
        >>> explanation.attributions.shape  # [N, S]
        torch.Size([1, 6])
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
        checked_config(self.explain_config)
        length = len(self.tokens)
        if self.prompt_length > length:
            raise InvalidInputError(f"`prompt_length` is {self.prompt_length}, but there are {length} units.")
        tensors = {name: x for name in _TENSORS if (x := getattr(self, name)) is not None}
        for name, value in tensors.items():
            tensors[name] = numbers(name, value, "a tensor of numbers").detach().to("cpu", torch.float32)
            object.__setattr__(self, name, tensors[name])
        layers, names = self.layers, self.layer_names
        sizes = {"S": length, "N": length - self.prompt_length}
        sources = {"S": "`tokens`", "N": "`prompt_length`"}
        if layers is not None:
            sizes["L"], sources["L"] = len(layers), "`layers`"
        check_tensors(tensors, _TENSORS, sizes, sources)
        if layers is not None and names is not None and len(layers) != len(names):
            raise InvalidInputError(f"`layers` and `layer_names` differ in length: {layers}, {names}.")
        for name in ("token_ids", "special", "unit_names"):
            value = getattr(self, name)
            if value is not None and len(value) != length:
                raise InvalidInputError(f"`{name}` must have an entry for each of the {length} units, got {len(value)}.")
        if "".join(self.tokens) != self.text:
            raise InvalidInputError("`tokens` do not join to `text`.")

    @classmethod
    def from_output(cls, output: Any, row: int, tokenizer: Any) -> "Explanation":
        """The old name of `ExplainGenerateOutput.explanation(row, tokenizer)`, for one more release.

        Raises:
            InvalidInputError: It is no such output; else as that.

        Examples:
            >>> out.explanation(0, tokenizer).tokens[:5]
            ['The', ' capital', ' of', ' Italy', ' is']
        """
        message = "`Explanation.from_output(output, row, tokenizer)` is now `output.explanation(row, tokenizer)`."
        warnings.warn(message, FutureWarning, stacklevel=2)
        if not hasattr(output, "explanation"):
            raise InvalidInputError(f"`output` must be an ExplainGenerateOutput, got {type(output).__name__}.")
        explanation: Explanation = output.explanation(row, tokenizer)
        return explanation

    def units(self, level: Level, generated: Level | None = None) -> list[Unit]:
        """Half-open ranges of tokens that cover the sequence in order, never across the border of the prompt.

        - `"token"`: tokens that make up one character are one unit.
        - `"word"`: letters, digits and combining marks in a row, with apostrophes inside (`don't`) and points inside numbers
          (`3.14`). Each Han character is a word. Kana, Thai and others that are written without spaces are not split.
          Punctuation in a row is one unit, and so is each emoji with its modifiers. Spaces belong to what follows. Line
          breaks stand alone.
        - `"sentence"`: ends at `.`, `!`, `?` or `…` before white space, at the full stops of Chinese, Japanese, Arabic, Urdu
          and Hindi, and at line breaks. Abbreviations are not known: `Dr. Smith` is cut.

        A special token is a unit of its own. A token that holds the end of a unit and the beginning of the next joins them.

        Args:
            level: The units of the prompt.
            generated: The units of the generated text; None: the same.

        Raises:
            InvalidInputError: There is no such level.

        Examples:
            >>> explanation.units("word")[:3]
            [(0, 1), (1, 2), (2, 3)]
        """
        return unit_ranges(self, level, generated)

    def aggregate(self, by: Level | Spans, *, generated: Level | None = None) -> "Explanation":
        """The explanation of larger units. Scores are summed over the tokens of a unit, both of sources and of generated ones.

        A generated unit can then contribute to itself: its later tokens rest on its earlier ones.

        Args:
            by: `"word"`, `"sentence"` or `"token"` (see `units`), or spans of the prompt: `{name: span}` or a list of spans.
                A span is a pair (start, end) of character offsets in `text`, or a substring that occurs once in the prompt.
                The text between spans becomes units too, in which each special token is one of its own. See `unit_names`.
            generated: The units of the generated text. None: the same level, or tokens if `by` are spans.

        Returns:
            An explanation of `S'` units: `attributions` is `[N', S']`.

        Raises:
            InvalidInputError: There is no such level, or a span is not in the prompt, ambiguous, or overlaps another.

        Examples:
            >>> by_name = explanation.aggregate({"question": "The capital of", "place": " Italy"})
            >>> by_name.unit_names[:3]
            ['question', 'place', None]
        """
        if isinstance(by, str):
            level: Any = by
            names = None
            units = unit_ranges(self, by, generated)
        else:
            level = "span"
            units, span_names = span_ranges(self, by)
            tail = [unit for unit in unit_ranges(self, "token", generated) if unit[0] >= self.prompt_length]
            names = [*span_names, *[None] * len(tail)]
            units += tail
        return dataclasses.replace(self, **merged(self, units), level=level, unit_names=names)

    def normalize(self, by: Literal["max", "sum"] = "max") -> "Explanation":
        """Scores divided, step by step, by the largest absolute score or by the sum of absolute scores.

        A step without scores stays zero. The heatmaps of single layers are divided by the same numbers as their sum.

        Args:
            by: `"max"`: the largest absolute score becomes 1. `"sum"`: the absolute scores add up to 1.

        Raises:
            InvalidInputError: There is no such normalisation.

        Examples:
            >>> explanation.normalize("sum").attributions.sum(-1).round(decimals=3)
            tensor([1., 1., 1., 1.])
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

        Examples:
            >>> explanation.top(0, k=1)
            [Contribution(position=..., token='...', score=...)]
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
        """A long table, one row per step and position before it; see `gradellm_hf.interchange.to_dataframe`.

        Examples:
            >>> len(explanation.to_dataframe())  # 5 + 6 + 7 + 8 positions before the four generated tokens
            26
        """
        from ..visualization.table import table

        return table([self])

    def to_html(self, path: str | os.PathLike[str] | None = None, **options: Any) -> str:
        """A self-contained interactive page, also written to `path` if given; see `visualization.html.report`.

        Args:
            path: The file to write.
            **options: As for `report`: the title.

        Raises:
            InvalidInputError: The title is no text.
            OSError: The file cannot be written.

        Examples:
            >>> page = explanation.to_html("answer.html", title="Where is Rome?")
        """
        from ..visualization.html import report

        page = report(self, **options)
        if path is not None:
            write_atomically(path, page.encode())
        return page

    def plot(self, path: str | os.PathLike[str] | None = None, **options: Any) -> "Figure":
        """A matplotlib figure, also written to `path` if given; see `visualization.plot.plot_heatmap`.

        Args:
            path: The file to write.
            **options: As for `plot_heatmap`.

        Raises:
            MissingDependencyError: matplotlib is not installed.
            InvalidInputError: There is nothing to show, or an option is not usable.
            OSError: The file cannot be written.

        Examples:
            >>> figure = explanation.plot("answer.png")
        """
        from ..visualization.plot import plot_heatmap

        return plot_heatmap(self, path, **options)

    def render(self, **options: Any) -> str:
        """Lines for a terminal; see `visualization.terminal.render`.

        Args:
            **options: As for `render`.

        Raises:
            InvalidInputError: `top` is no number of at least 0.

        Examples:
            >>> len(explanation.render(top=2).splitlines())  # one line per generated token
            4
        """
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
        """Writes one `.safetensors` file, atomically. It is read without the model, its tokenizer or pickle.

        Raises:
            OSError: The file cannot be written.

        Examples:
            >>> explanation.save("answer.safetensors")
            >>> Explanation.load("answer.safetensors").text == explanation.text
            True
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: value for name, value in values.items() if name in _TENSORS and value is not None}
        metadata = {name: value for name, value in values.items() if name not in _TENSORS}
        metadata["explain_config"] = None if self.explain_config is None else self.explain_config.to_dict()
        write_tensors(path, tensors, {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Explanation":
        """Reads a file that `save` wrote. A configuration with a callable target cannot be read back: it is None.

        Raises:
            FileNotFoundError: There is no such file.
            InvalidInputError: It is not such a file, damaged, or of a format version that this release does not know.

        Examples:
            >>> explanation.save("answer.safetensors")
            >>> Explanation.load("answer.safetensors")
            Explanation(4 generated tokens from 5, ...)
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
    """What the metadata of a file must have besides `format` and `format_version`. `Explanation` checks the rest."""

    tokens: list[str]
    token_ids: Any
    prompt_length: Any
    text: Any
    special: Any
    explain_config: dict[str, Any] | None
