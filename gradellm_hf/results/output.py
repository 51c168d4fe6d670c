"""What an explained generation returns, and its file format: one safetensors file, no pickle."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import compress
from typing import Any, TypedDict, get_args

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ..architecture.compat import cache_named_as_by_generate
from ..checks.arguments import whole_number
from ..checks.files import TensorFile, reading, write_tensors
from ..checks.schema import Natural, TensorKind, check, check_tensors
from ..configuration import GradELLMConfig, stored_config
from ..errors import InvalidInputError
from ..text.chats import Chat
from ..text.token_text import special_tokens, token_texts
from .chats import image_positions, of_chats
from .explanation import Explanation
from .rows import among_zeros, places, without_zeros

FORMAT = "gradellm_hf"
FORMAT_VERSION = 2  # with `explained_mask`, heatmaps have rows only for steps that are explained in some row; else 1
_FLOAT, _BOOL = (torch.float32,), (torch.bool,)
#: In a file, by the letters of `ExplainGenerateOutput`; X is S, or N for prompts given as embeddings; M: explained steps.
_TENSORS = {
    "step_mask": TensorKind("RN", _BOOL),
    "explained_mask": TensorKind("RN", _BOOL, optional=True),
    "sequences": TensorKind("RX", (torch.int64,), (0, 2**31 - 1)),
    "attributions": TensorKind("RMS", _FLOAT),
    "target_scores": TensorKind("RN", _FLOAT),
    "token_probabilities": TensorKind("RN", _FLOAT, (0, 1.001)),
    "layer_attributions": TensorKind("RLMS", _FLOAT, optional=True),
    "prompt_mask": TensorKind("RP", _BOOL),
    "image_mask": TensorKind("RP", _BOOL, optional=True),
}
_HEATMAPS = ("attributions", "layer_attributions")


class _Metadata(TypedDict):
    """Of a file, besides `format` and `format_version`."""

    prompt_length: Natural
    layers: list[Natural]
    layer_names: list[str]
    model_name: str
    config: dict[str, Any] | None
    tokens: list[list[str | None]] | None


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
        )

    def save(self, path: str | os.PathLike[str], tokenizer: Any = None) -> None:
        """Writes the explanation (not what `generate` returned besides `sequences`) to one `.safetensors` file, atomically.

        Steps that are not explained take no room in it.

        Args:
            path: File to write.
            tokenizer: If given, the tokens are stored too, so that the file can be read without it.

        Raises:
            OSError: The file cannot be written.

        Examples:
            >>> out.save("out.safetensors", tokenizer)
            >>> ExplainGenerateOutput.load("out.safetensors").attributions.equal(out.attributions)
            True
        """
        values = {name: getattr(self, name) for name in _TENSORS}
        tensors = {name: value for name, value in values.items() if value is not None}
        rows = _explained_rows(tensors)
        tensors |= {name: without_zeros(tensors[name], rows) for name in _HEATMAPS if name in tensors}
        tokens = self.tokens
        if tokenizer is not None:
            tokens = [tokenizer.convert_ids_to_tokens(row) for row in self.sequences.tolist()]
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION - (self.explained_mask is None),
            "prompt_length": self.prompt_length,
            "layers": self.layers,
            "layer_names": self.layer_names,
            "model_name": self.model_name,
            "config": None if self.explain_config is None else self.explain_config.to_dict(),
            "tokens": tokens,
        }
        write_tensors(path, tensors, metadata)

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
        file = TensorFile(path, "ExplainGenerateOutput.save")
        file.check_format(FORMAT, FORMAT_VERSION)
        metadata = file.metadata
        with reading(path):
            check(metadata, _Metadata, "the metadata")
            tensors: dict[str, Any] = file.tensors(_TENSORS)
            rows = _check_sizes(tensors, metadata)
            num_steps = tensors["step_mask"].shape[1]
            tensors |= {name: among_zeros(tensors[name], rows, num_steps) for name in _HEATMAPS if name in tensors}
            return cls(
                **tensors,
                prompt_length=metadata["prompt_length"],
                layers=metadata["layers"],
                layer_names=metadata["layer_names"],
                model_name=metadata["model_name"],
                explain_config=stored_config(metadata["config"]),
                tokens=metadata["tokens"],
            )


def _explained_rows(tensors: dict[str, Tensor]) -> list[int]:
    """The steps for which heatmaps have a row in a file: all, or those that are explained in some sequence."""
    if "explained_mask" not in tensors:
        return list(range(tensors["step_mask"].shape[1]))
    rows: list[int] = tensors["explained_mask"].any(0).nonzero().flatten().tolist()
    return rows


def _check_sizes(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> list[int]:
    """The steps for which heatmaps have a row. Raises InvalidInputError if what a file holds does not fit together."""
    layers, names, tokens = metadata["layers"], metadata["layer_names"], metadata["tokens"]
    check_tensors(tensors, {name: _TENSORS[name] for name in ("step_mask", "explained_mask")}, {})
    num_steps, rows = tensors["step_mask"].shape[1], _explained_rows(tensors)
    sizes = {"P": metadata["prompt_length"], "L": len(layers), "M": len(rows)}
    check_tensors(tensors, _TENSORS, sizes)
    num_rows, _, length = tensors["attributions"].shape
    if sizes["P"] + num_steps != length:
        raise InvalidInputError(f"`prompt_length` is {sizes['P']}, but {num_steps} of {length} positions are generated.")
    width = tensors["sequences"].shape[1]
    if width not in (length, num_steps):
        raise InvalidInputError(f"`sequences` must have {length} or {num_steps} positions, got {width}.")
    if len(layers) != len(names):
        raise InvalidInputError(f"`layers` and `layer_names` differ in length: {layers}, {names}.")
    if tokens is not None and (len(tokens), *{len(row) for row in tokens}) != (num_rows, width):
        raise InvalidInputError(f"`tokens` must be {num_rows} lists of {width} tokens.")
    return rows
