"""One explained sequence that people can read: its pieces of text and the heatmap of every generated one."""

import os
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..checks.arguments import true_or_false
from ..checks.schema import Natural, TokenId
from ..configuration import GradELLMConfig
from ..errors import InvalidInputError
from ..text.image_patches import ImagePatches
from ..text.rest import Rest
from ..text.segments import Segment
from .fields import checked_fields
from .files import read_explanation, write_explanation
from .kept import Keep
from .pictured import Pictured
from .ranked import Ranked
from .restated import Restated
from .shown import Shown

UnitLevel = Literal["token", "word", "sentence", "paragraph", "message", "span"]


@dataclass(frozen=True, eq=False)
class Explanation(Ranked, Restated, Pictured, Shown):
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
        images: The images of the prompt, in order: which tokens stand for them, and for which part of the picture; see
            `gradellm_hf.images.ImagePatches`. None if there are none, or they are not known.
        explained: `N` bools: whether a generated unit has a heatmap. None: all of them. With `steps=` only some have; the
            scores and probabilities of the others are 0, which says nothing about them.
        rest: How much is left out of `attributions`, if only the strongest scores were kept (see `compact`); else None.
            `rest.total` `[N]` is the sum of each step. A score of 0 says nothing then.
        layer_rest: The same of `layer_attributions`, `[L, N]`.

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
    images: list[ImagePatches] | None = None
    rest: Rest | None = None
    layer_rest: Rest | None = None

    def __post_init__(self) -> None:
        for name, value in checked_fields(self).items():
            object.__setattr__(self, name, value)

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

    @property
    def answer(self) -> str:
        """The generated text, without special tokens and white space around it."""
        return self._plain(range(self.prompt_length, len(self.tokens)))

    @property
    def prompt(self) -> str:
        """The given text, without images, special tokens and template. The messages of a chat are apart by an empty line."""
        if self.segments is None:
            return self._plain(range(self.prompt_length))
        return "\n\n".join(self.text[segment["start"] : segment["end"]] for segment in self.segments)

    def _plain(self, positions: range) -> str:
        images = {i for image in self.images or [] for i in image.extent}
        return "".join(self.tokens[i] for i in positions if not self.special[i] and i not in images).strip()

    def __repr__(self) -> str:
        generated = "".join(self.tokens[self.prompt_length :])
        return (
            f"Explanation({len(self.attributions)} generated {self.level}s from {self.prompt_length}, "
            f"model={self.model_name!r}, generated={generated if len(generated) < 80 else generated[:77] + '...'!r})"
        )

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        keep: Keep | None = None,
        score_dtype: str = "float32",
        pictures: bool = False,
    ) -> None:
        """Writes one `.safetensors` file, atomically. It is read without the model, its tokenizer or pickle.

        Args:
            path: File to write.
            keep: `"top"` or a number: only the strongest scores, as `compact` has them. None: all that there are.
            score_dtype: `"float32"`; or `"float16"`: half the size, right to half a thousandth.
            pictures: Whether the pictures of a prompt with images are stored too, losslessly. False: only their sizes, and
                which part of them each token stands for.

        Raises:
            InvalidInputError: An argument is something else.
            OSError: The file cannot be written.

        Examples:
            >>> explanation.save("answer.safetensors")
            >>> Explanation.load("answer.safetensors").text == explanation.text
            True
            >>> explanation.save("small.safetensors", keep="top", score_dtype="float16")
            >>> Explanation.load("small.safetensors").sources(of="answer")[0].text == explanation.sources(of="answer")[0].text
            True
        """
        write_explanation(path, self, keep, score_dtype, pictures=true_or_false("pictures", pictures))

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
