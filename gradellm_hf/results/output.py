"""What an explained generation returns."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import compress
from typing import Any, get_args

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ..architecture.compat import cache_named_as_by_generate
from ..checks.arguments import whole_number
from ..configuration import GradELLMConfig
from ..errors import InvalidInputError
from ..text.chats import Chat
from ..text.rest import Rest
from ..text.token_text import special_tokens, token_texts
from .chats import image_positions, of_chats
from .explanation import Explanation
from .kept import Keep
from .output_files import read_output, write_output
from .rows import among_zeros, places, without_zeros

_ALWAYS: Any = None  # the default of fields that every output has: `ModelOutput` wants one, and that it is None


@dataclass
@cache_named_as_by_generate
class ExplainGenerateOutput(ModelOutput):
    """Generated sequences with a heatmap for every generated token.

    `R` rows (batch x num_return_sequences), `P` prompt length, `N` new tokens, `S = P + N`.

    Args:
        sequences (`torch.LongTensor` of shape `(R, S)`):
            As `model.generate` returns them (without the prompt, if it was given as `inputs_embeds` only).
        attributions (`torch.FloatTensor` of shape `(R, N, S)`):
            `a[n, i]`: contribution of position `i` to generated token `n`. Exactly 0 for `i >= P + n`, for padding, for
            steps after a row's end, and for steps that `steps=` did not ask for. On a CPU, rows of such steps take no memory.
        step_mask (`torch.BoolTensor` of shape `(R, N)`):
            False for steps after a row's end: those that follow the token at which `generate` ended it (an end-of-sequence
            token, a stop string, any stopping criterion). If a `custom_generate` function does not ask the list of
            stopping criteria, a row ends with its first end-of-sequence token, or before nothing but padding. For given
            text see `explain_sequences`.
        prompt_length (`int`):
            `P`, padding included; counts the positions of `inputs_embeds` too.
        target_scores (`torch.FloatTensor` of shape `(R, N)`):
            The explained scalar `f_n`; by default the raw logit of the chosen token. 0 for steps that are not explained.
        token_probabilities (`torch.FloatTensor` of shape `(R, N)`):
            Softmax of the raw logits at the chosen token, before any logits processor. 0 for steps that are not explained.
        layer_attributions (`torch.FloatTensor` of shape `(R, len(layers), N, S)`, *optional*):
            The heatmap of each explained layer, with `output_layer_attributions=True`.
        explained_mask (`torch.BoolTensor` of shape `(R, N)`, *optional*, with `steps=`):
            True for steps that are explained. None: those of `step_mask`.
        rest, layer_rest (*optional*, after loading a file in which only the strongest scores were kept):
            How much is left out of `attributions` and `layer_attributions`; `rest.total` is `(R, N)`.
        prompt_mask (`torch.BoolTensor` of shape `(R, P)`): False for padding.
        image_mask (`torch.BoolTensor` of shape `(R, P)`, *optional*, for models that read images):
            True for prompt positions that hold (a patch of) an image.
        layers (`list[int]`): The explained layers, as indices of the model's attention layers.
        layer_names (`list[str]`): The names of their modules: in a hybrid model not every decoder layer has attention.
        explain_config (`GradELLMConfig`): How it was explained. None after loading a file made with a callable target.
        model_name (`str`): `config.name_or_path` of the model, or its class.
        tokens (`list[list[str]]` of `R` lists of length `S`, *optional*): Set by `load` if the file holds tokens.
        scores, logits, attentions, hidden_states, cache, sequences_scores, beam_indices (*optional*):
            As `model.generate` returns them, when asked for. Before Transformers 5.24 `generate` calls the cache
            `past_key_values`, and so does this; the attribute `cache` is there with every version.

    Examples:
        >>> out = explain_generate(model, **inputs, max_new_tokens=4)
        >>> out.attributions.shape, out.step_mask.shape  # [R, N, S] and [R, N]
        (torch.Size([1, 4, 9]), torch.Size([1, 4]))
    """

    sequences: Tensor = _ALWAYS
    attributions: Tensor = _ALWAYS
    step_mask: Tensor = _ALWAYS
    prompt_length: int = _ALWAYS
    target_scores: Tensor = _ALWAYS
    token_probabilities: Tensor = _ALWAYS
    layer_attributions: Tensor | None = None
    explained_mask: Tensor | None = None
    rest: Rest | None = None
    layer_rest: Rest | None = None
    prompt_mask: Tensor = _ALWAYS
    image_mask: Tensor | None = None
    layers: list[int] = _ALWAYS
    layer_names: list[str] = _ALWAYS
    explain_config: GradELLMConfig | None = None
    model_name: str = _ALWAYS
    tokens: list[list[str | None]] | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    cache: Any | None = None
    sequences_scores: Tensor | None = None
    beam_indices: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        required = [field.name for field in fields(ExplainGenerateOutput) if type(None) not in get_args(field.type)]
        missing = [name for name in required if getattr(self, name) is None]
        if missing:
            raise InvalidInputError(
                f"An ExplainGenerateOutput needs {', '.join(f'`{name}`' for name in missing)} too. What `explain_generate`, "
                "`explain_sequences` and `ExplainGenerateOutput.load` return has all of its fields."
            )

    def explanations(
        self, tokenizer: Any = None, chats: Sequence[str | Chat] | None = None, **template: Any
    ) -> list[Explanation]:
        """The rows as readable sequences, without padding and without steps after a row's end.

        Args:
            tokenizer: The tokenizer, or processor, that the prompts were made with. None: the tokens that a loaded file
                holds, as they are written in the vocabulary.
            chats: The chats that the prompts were made of by the tokenizer's chat template, one for each: the explanations
                then know their messages, as those of `GradELLM.explain` do. A prompt that is none is a text. Chats with images
                need the processor, and the pictures in their parts: the explanations then know the images, too.
            **template: What the template was given: `tools`, `documents`, `chat_template`, `continue_final_message`,
                `enable_thinking`; see `GradELLM.explain`.

        Returns:
            `R` explanations.

        Raises:
            InvalidInputError: A tokenizer is needed and not given; the prompts were given as embeddings, which have no text; or
                a prompt is not what the template makes of its chat.

        Examples:
            >>> out.explanations(tokenizer)
            [Explanation(4 generated tokens from 5, ...)]
        """
        rows = [self.explanation(row, tokenizer) for row in range(len(self.attributions))]
        if chats is None:
            return rows
        return of_chats(rows, tokenizer, chats, template, [image_positions(self, row) for row in range(len(rows))])

    def explanation(self, row: int, tokenizer: Any = None) -> Explanation:
        """A row as a readable sequence, without padding and without steps after its end.

        Args:
            row: 0 to `R - 1`.
            tokenizer: The tokenizer, or processor, that the prompt was made with. None: the tokens that a loaded output
                holds are shown as they are written in the vocabulary, and none counts as special.

        Raises:
            InvalidInputError: There is no such row, a tokenizer is needed and not given, or the prompt was given as embeddings,
                which have no text.

        Examples:
            >>> out.explanation(0, tokenizer).tokens[:5]
            ['The', ' capital', ' of', ' Italy', ' is']
        """
        num_rows, _, length = self.attributions.shape
        if whole_number("row", row) not in range(num_rows):
            raise InvalidInputError(f"There is no row {row}: {num_rows} sequences are explained.")
        sequence = self.sequences[row].cpu()
        if len(sequence) != length:
            raise InvalidInputError("The prompt was given as embeddings, which have no text: use the tensors of the self.")
        prompt, steps = self.prompt_mask[row].cpu(), self.step_mask[row].cpu()
        kept = torch.cat([prompt, steps])
        token_ids = sequence[kept].tolist()
        shown = steps if self.explained_mask is None else steps & self.explained_mask[row].cpu()
        explained = shown[steps].tolist()
        if tokenizer is not None:
            tokens, special = token_texts(tokenizer, token_ids), special_tokens(tokenizer, token_ids)
        elif self.tokens is not None:
            known = compress(self.tokens[row], kept.tolist())
            tokens, special = [token or "" for token in known], [False] * len(token_ids)  # as unknown ids are decoded
        else:
            raise InvalidInputError("Token ids have no text without a tokenizer: give the one that the prompt was made with.")

        def trimmed(x: torch.Tensor | None, *, sources: bool) -> Any:
            if x is None:
                return None
            if not sources:
                return x[row].cpu()[steps]
            known = without_zeros(x[row], places(shown.tolist()))[..., kept.to(x.device)].cpu()
            return among_zeros(known, places(explained), len(explained))

        def rest_of(rest: Rest | None) -> Rest | None:
            return None if rest is None else rest.of(row).trimmed(kept, steps)

        return Explanation(
            tokens=tokens,
            token_ids=token_ids,
            prompt_length=int(prompt.sum()),
            attributions=trimmed(self.attributions, sources=True),
            token_probabilities=trimmed(self.token_probabilities, sources=False),
            text="".join(tokens),
            special=special,
            target_scores=trimmed(self.target_scores, sources=False),
            layer_attributions=trimmed(self.layer_attributions, sources=True),
            layers=self.layers,
            layer_names=self.layer_names,
            model_name=self.model_name,
            explain_config=self.explain_config,
            explained=None if self.explained_mask is None else explained,
            rest=rest_of(self.rest),
            layer_rest=rest_of(self.layer_rest),
        )

    def save(
        self,
        path: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        keep: Keep | None = None,
        score_dtype: str = "float32",
    ) -> None:
        """Writes the explanation (not what `generate` returned besides `sequences`) to one `.safetensors` file, atomically.

        Steps that are not explained take no room in it.

        Args:
            path: File to write.
            tokenizer: If given, the tokens are stored too, so that the file can be read without it.
            keep: `"top"` or a number: only the strongest scores, as `Explanation.compact` has them. None: all that there are.
                Special tokens are a kind of their own if a tokenizer is given. A chat's template is none here: save the
                explanations, which know it.
            score_dtype: `"float32"`; or `"float16"`: half the size, right to half a thousandth.

        Raises:
            InvalidInputError: `keep` or `score_dtype` is something else.
            OSError: The file cannot be written.

        Examples:
            >>> out.save("out.safetensors", tokenizer)
            >>> ExplainGenerateOutput.load("out.safetensors").attributions.equal(out.attributions)
            True
        """
        write_output(path, self, tokenizer, keep, score_dtype)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ExplainGenerateOutput":
        """Reads a file that `save` wrote; needs neither the model nor its tokenizer.

        Raises:
            FileNotFoundError: There is no such file.
            InvalidInputError: It is not such a file, damaged, or of a format version that this release does not know.

        Examples:
            >>> out.save("out.safetensors", tokenizer)
            >>> ExplainGenerateOutput.load("out.safetensors").explanations()
            [Explanation(4 generated tokens from 5, ...)]
        """
        output: ExplainGenerateOutput = read_output(path, cls)
        return output
