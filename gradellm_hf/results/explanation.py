"""One explained sequence that people can read: its pieces of text and the heatmap of every generated one."""

import dataclasses
import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..checks.arguments import choice, numbers, whole_number
from ..checks.schema import Natural, TokenId, check, check_tensors, field_types
from ..configuration import GradELLMConfig, checked_config
from ..errors import InvalidInputError
from ..text.readable import Contribution, Level
from ..text.segments import Segment
from ..text.shares import IGNORED, IGNORED_IN_SUMS, Kind, as_ignore, ignored_positions
from ..text.units import Spans, Unit, merged, span_ranges, unit_names, unit_ranges
from .files import TENSORS, read_explanation, write_explanation
from .ranking import Of, find_sources
from .shown import Shown
from .sources import Sources
from .trace import traced

UnitLevel = Literal["token", "word", "sentence", "paragraph", "message", "span"]


@dataclass(frozen=True, eq=False)
class Explanation(Shown):
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
        level: What the units are: `"token"`, `"word"`, `"sentence"`, `"paragraph"`, `"message"` or `"span"`.
        unit_names: `S` names of messages, or of the spans that `aggregate` was given; None for a unit without a name.
        segments: The messages, tools and documents of a chat, by their characters in `text`; the rest of the prompt is the
            template's. None if they are not known: the prompt was a text, or its template changes with what it is given.
        foil: The text of the token that the generated one is compared with; None if there is none, or several.
        explained: `N` bools: whether a generated unit has a heatmap. None: all of them. With `steps=` only some have; the
            scores and probabilities of the others are 0, which says nothing about them.

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
    segments: list[Segment] | None = None
    foil: str | None = None
    explained: list[bool] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_length", whole_number("prompt_length", self.prompt_length, 0))
        this: Any = type(self)
        for name, kind in field_types(this).items():
            if name not in (*TENSORS, "explain_config"):
                check(getattr(self, name), kind, f"`{name}`")
        checked_config(self.explain_config)
        length = len(self.tokens)
        if self.prompt_length > length:
            raise InvalidInputError(f"`prompt_length` is {self.prompt_length}, but there are {length} units.")
        tensors = {name: x for name in TENSORS if (x := getattr(self, name)) is not None}
        for name, value in tensors.items():
            tensors[name] = numbers(name, value, "a tensor of numbers").detach().to("cpu", torch.float32)
            object.__setattr__(self, name, tensors[name])
        layers, names = self.layers, self.layer_names
        sizes = {"S": length, "N": length - self.prompt_length}
        sources = {"S": "`tokens`", "N": "`prompt_length`"}
        if layers is not None:
            sizes["L"], sources["L"] = len(layers), "`layers`"
        check_tensors(tensors, TENSORS, sizes, sources)
        if layers is not None and names is not None and len(layers) != len(names):
            raise InvalidInputError(f"`layers` and `layer_names` differ in length: {layers}, {names}.")
        for name in ("token_ids", "special", "unit_names"):
            value = getattr(self, name)
            if value is not None and len(value) != length:
                raise InvalidInputError(f"`{name}` must have an entry for each of the {length} units, got {len(value)}.")
        if self.explained is not None and len(self.explained) != sizes["N"]:
            raise InvalidInputError(
                f"`explained` must have an entry for each of the {sizes['N']} generated units, got {len(self.explained)}."
            )
        if "".join(self.tokens) != self.text:
            raise InvalidInputError("`tokens` do not join to `text`.")
        for segment in self.segments or []:
            if not segment["start"] < segment["end"] <= len(self.text):
                raise InvalidInputError(
                    f"`segments` hold {segment}, which is no stretch of a text of {len(self.text)} characters."
                )

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
          and Hindi, and at line breaks. Not at the points of common abbreviations (`Dr. Smith`), of initials and of the numbers
          of a list, nor before a small letter.
        - `"paragraph"`: ends at an empty line.
        - `"message"`: a message, tool or document of a chat, if they are known. In the generated text: thinking (between
          `<think>` and `</think>`), a tool call, or the answer.

        Messages, and these parts of the generated text, are never cut across: a unit is in one of them, or in the template.
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

    def aggregate(
        self,
        by: Level | Spans,
        *,
        generated: Level | Literal["answer"] | None = None,
        ignore: Collection[Kind] = IGNORED_IN_SUMS,
    ) -> "Explanation":
        """The explanation of larger units. Scores are summed over the tokens of a unit, both of sources and of generated ones.

        A generated unit can then contribute to itself: its later tokens rest on its earlier ones. What an answer rests on, as
        ranked and named shares, is in `sources`.

        Args:
            by: A level (see `units`), or spans of the prompt: `{name: span}` or a list of spans.
                A span is a pair (start, end) of character offsets in `text`, or a substring that occurs once in the prompt.
                The text between spans becomes units too, in which each special token is one of its own. See `unit_names`.
            generated: The units of the generated text. `"answer"`: all of it is one. None: the same level, or tokens if `by`
                are spans.
            ignore: What has no part in the sums; see `sources`. By default the first token, if it is not special: in a unit
                with others it would hide what they contribute.

        Returns:
            An explanation of `S'` units: `attributions` is `[N', S']`.

        Raises:
            InvalidInputError: There is no such level, or a span is not in the prompt, ambiguous, or overlaps another.

        Examples:
            >>> by_name = explanation.aggregate({"question": "The capital of", "place": " Italy"})
            >>> by_name.unit_names[:3]
            ['question', 'place', None]
        """
        border = self.prompt_length
        within: Any = "token" if generated == "answer" else generated
        names: list[str | None] | None = None
        if isinstance(by, str):
            level: Any = by
            units = unit_ranges(self, by, within)
            if by == "message":
                names = unit_names(self, units)
        else:
            level = "span"
            units, names = span_ranges(self, by)
            units += [unit for unit in unit_ranges(self, "token", within) if unit[0] >= border]
        if generated == "answer":
            units = [unit for unit in units if unit[1] <= border] + [(border, len(self.tokens))] * (border < len(self.tokens))
        if names is not None:
            names = [*names, *[None] * len(units)][: len(units)]
        ignored = ignored_positions(self, ignore)
        layers = self.layer_attributions
        counted = dataclasses.replace(
            self,
            attributions=self.attributions.masked_fill(ignored, 0),
            layer_attributions=None if layers is None else layers.masked_fill(ignored, 0),
        )
        return dataclasses.replace(self, **merged(counted, units), level=level, unit_names=names)

    def sources(
        self,
        by: Level | Spans = "sentence",
        of: Of = "sentence",
        *,
        k: int | None = None,
        ignore: Collection[Kind] = IGNORED,
    ) -> Sources:
        """What the answer rests on: for each part of it, the sources of the prompt, strongest first.

        The share of a source is its score over the sum of the scores of all candidate sources; the shares of a part add up to
        1. A source's score is the sum over its tokens, and over the generated tokens of the part. Only scores of at least 20 %
        of the largest in their row count: a long text has many small ones that mean nothing, and their sum grows with its
        length. With signed scores (of a contrast, say), shares add up to 1 by their size, and a negative one speaks against.

        Args:
            by: What the sources are: `"sentence"`, `"paragraph"`, `"message"`, `"word"` or `"token"` (see `units`), or spans of
                the prompt, as for `aggregate`.
            of: The parts of the generated text: `"answer"` (all of it), `"segment"` (thinking, tool calls, answer),
                `"paragraph"`, `"sentence"`, `"word"` or `"token"`. If only some steps are explained, a part is what lies
                between its first and its last explained token, and there are no parts without one.
            k: Name at most so many sources of each part. None: all that have a share.
            ignore: What is no source: `"special"` tokens; the `"template"` of a chat; the `"sink"`, which is position 0;
                the answer's `"own"` text. By default all of these. How much of all scores they hold is in `Part.ignored`.

        Raises:
            InvalidInputError: There is no such level; a span is not in the prompt, ambiguous, or overlaps another; messages are
                asked for and not known; no part has an explained token; or `k` or `ignore` is not usable.

        Examples:
            >>> sources = explanation.sources({"question": "The capital of", "place": " Italy"}, of="answer")
            >>> [source.name for source in sources[0].sources]
            ['question', 'place']
            >>> round(sum(source.share for source in sources[0].sources), 3)
            1.0
        """
        return find_sources(self, by, of, k, ignore)

    def trace(self) -> "Explanation":
        """The same with heatmaps over the prompt only: what each generated token rests on there, also through earlier ones.

        An answer that first quotes or reasons rests on its own words, and these rest on the prompt. With the scores of a row
        divided by their sum, without the first position, a row is what a token took from the prompt (`A_P`) and from the
        generated tokens before it (`A_G`). All paths through the generated text add up to

            R = A_P + A_G A_P + A_G^2 A_P + ... = (I - A_G)^-1 A_P

        so each row of `R` adds up to 1, unless it has no scores.

        Returns:
            The explanation with `attributions` `[N, S]` = `[R | 0]` and without those of layers.

        Raises:
            InvalidInputError: The units are not tokens (trace first, then `aggregate`), or `steps=` left a token unexplained
                that comes before an explained one.

        Examples:
            >>> explanation.trace().attributions.sum(-1).round(decimals=3)
            tensor([1., 1., 1., 1.])
        """
        return dataclasses.replace(self, attributions=traced(self), layer_attributions=None)

    @property
    def answer(self) -> str:
        """The generated text, without special tokens and white space around it."""
        return self._plain(range(self.prompt_length, len(self.tokens)))

    @property
    def prompt(self) -> str:
        """The given text, without special tokens and template. The messages of a chat are apart by an empty line."""
        if self.segments is None:
            return self._plain(range(self.prompt_length))
        return "\n\n".join(self.text[segment["start"] : segment["end"]] for segment in self.segments)

    def _plain(self, positions: range) -> str:
        return "".join(self.tokens[i] for i in positions if not self.special[i]).strip()

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

    def top(
        self, step: int, k: int = 10, *, ignore: Collection[Kind] = IGNORED, include_special: bool | None = None
    ) -> list[Contribution]:
        """The units that contributed most to generated unit `step`, strongest first; those with a score of 0 are left out.

        Args:
            step: 0 to `N - 1`; negative ones count from the end.
            k: At most so many, 0 or more.
            ignore: What is left out; see `sources`. By default special tokens, a chat's template, position 0 and the answer's
                own text.
            include_special: The old form of `ignore=()`, for one more release; False: of `ignore=["special"]`.

        Returns:
            Their positions, texts (of a named span: the name) and scores. Negative scores rank by their size.

        Raises:
            InvalidInputError: There is no such step, it is not explained, `k` is no number of units, or `ignore` holds
                something else.

        Examples:
            >>> explanation.top(0, k=1)
            [Contribution(position=..., token='...', score=...)]
        """
        step, k = whole_number("step", step), whole_number("k", k, 0)
        ignore = as_ignore(include_special, ignore)
        num_steps = len(self.attributions)
        if not -num_steps <= step < num_steps:
            raise InvalidInputError(f"There is no step {step}: {num_steps} steps are explained.")
        if self.explained is not None and not self.explained[step]:
            raise InvalidInputError(f"Step {step} is not explained: `steps` asked for others.")
        scores = self.attributions[step].masked_fill(ignored_positions(self, ignore), 0)
        order = scores.abs().argsort(descending=True, stable=True)[:k].tolist()
        names = self.unit_names or [None] * len(self.tokens)
        return [Contribution(i, names[i] or self.tokens[i], scores[i].item()) for i in order if scores[i] != 0]

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
        write_explanation(path, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

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
        explanation: Explanation = read_explanation(path, cls)
        return explanation
