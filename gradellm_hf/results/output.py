"""What an explained generation returns, and its file format: one safetensors file, no pickle."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from transformers.utils import ModelOutput

from ..architecture.compat import cache_named_as_by_generate
from ..checks.files import TensorFile, reading, write_tensors
from ..checks.schema import Natural, TensorKind, check, check_tensors
from ..configuration import GradELLMConfig, stored_config
from ..errors import InvalidInputError

if TYPE_CHECKING:
    from .explanation import Explanation

FORMAT = "gradellm_hf"
FORMAT_VERSION = 1
_FLOAT, _BOOL = (torch.float32,), (torch.bool,)
_TENSORS = {  # in a file, by the letters of `ExplainGenerateOutput`; X is S, or N for prompts given as embeddings
    "sequences": TensorKind("RX", (torch.int64,), (0, 2**31 - 1)),
    "attributions": TensorKind("RNS", _FLOAT),
    "step_mask": TensorKind("RN", _BOOL),
    "target_scores": TensorKind("RN", _FLOAT),
    "token_probabilities": TensorKind("RN", _FLOAT, (0, 1.001)),
    "layer_attributions": TensorKind("RLNS", _FLOAT, optional=True),
    "prompt_mask": TensorKind("RP", _BOOL, optional=True),
    "image_mask": TensorKind("RP", _BOOL, optional=True),
}


class _Metadata(TypedDict):
    """Of a file, besides `format` and `format_version`."""

    prompt_length: Natural
    layers: list[Natural] | None
    layer_names: list[str] | None
    model_name: str | None
    config: dict[str, Any] | None
    tokens: list[list[str | None]] | None


@dataclass
@cache_named_as_by_generate
class ExplainGenerateOutput(ModelOutput):
    """Generated sequences with a heatmap for every generated token.

    `R` rows (batch x num_return_sequences), `P` prompt length, `N` new tokens, `S = P + N`.

    Args:
        sequences (`torch.LongTensor` of shape `(R, S)`):
            As `model.generate` returns them (without the prompt, where that was given as `inputs_embeds` only).
        attributions (`torch.FloatTensor` of shape `(R, N, S)`):
            `a[n, i]`: contribution of position `i` to generated token `n`. Exactly 0 for `i >= P + n`, for padding, and for
            steps after a row's end.
        step_mask (`torch.BoolTensor` of shape `(R, N)`):
            False for steps after a row's end: those that follow the token at which `generate` ended it (an end-of-sequence
            token, a stop string, any stopping criterion). If a `custom_generate` function does not ask the list of
            stopping criteria: after the first end-of-sequence token, or where nothing but padding follows. For given text
            see `explain_sequences`.
        prompt_length (`int`):
            `P`, padding included; counts the positions of `inputs_embeds` too.
        target_scores (`torch.FloatTensor` of shape `(R, N)`):
            The explained scalar `f_n`; by default the raw logit of the chosen token. 0 where `step_mask` is False.
        token_probabilities (`torch.FloatTensor` of shape `(R, N)`):
            Softmax of the raw logits at the chosen token, before any logits processor. 0 where `step_mask` is False.
        layer_attributions (`torch.FloatTensor` of shape `(R, len(layers), N, S)`, *optional*):
            The heatmap of each explained layer, with `output_layer_attributions=True`.
        prompt_mask (`torch.BoolTensor` of shape `(R, P)`): False for padding.
        image_mask (`torch.BoolTensor` of shape `(R, P)`, *optional*, for models that read images):
            True where a prompt position holds (a patch of) an image.
        layers (`list[int]`): The explained layers, as indices of the model's attention layers.
        layer_names (`list[str]`): The names of their modules: in a hybrid model not every decoder layer has attention.
        explain_config (`GradELLMConfig`): How it was explained. None after loading a file made with a callable target.
        model_name (`str`): `config.name_or_path` of the model, or its class.
        tokens (`list[list[str]]` of `R` lists of length `S`, *optional*): Set by `load` where the file holds tokens.
        scores, logits, attentions, hidden_states, cache, sequences_scores, beam_indices (*optional*):
            As `model.generate` returns them, when asked for. Before Transformers 5.24 `generate` calls the cache
            `past_key_values`, and so does this; the attribute `cache` is there with every version.
    """

    sequences: torch.Tensor | None = None
    attributions: torch.Tensor | None = None
    step_mask: torch.Tensor | None = None
    prompt_length: int | None = None
    target_scores: torch.Tensor | None = None
    token_probabilities: torch.Tensor | None = None
    layer_attributions: torch.Tensor | None = None
    prompt_mask: torch.Tensor | None = None
    image_mask: torch.Tensor | None = None
    layers: list[int] | None = None
    layer_names: list[str] | None = None
    explain_config: GradELLMConfig | None = None
    model_name: str | None = None
    tokens: list[list[str]] | None = None
    scores: tuple[torch.Tensor] | None = None
    logits: tuple[torch.Tensor] | None = None
    attentions: tuple[tuple[torch.Tensor]] | None = None
    hidden_states: tuple[tuple[torch.Tensor]] | None = None
    cache: Any | None = None
    sequences_scores: torch.Tensor | None = None
    beam_indices: torch.Tensor | None = None

    def explanations(self, tokenizer: Any = None) -> "list[Explanation]":
        """The rows as readable sequences, without padding and without steps after a row's end.

        Args:
            tokenizer: The tokenizer, or processor, that the prompts were made with. None: the tokens that a loaded file
                holds, as they are written in the vocabulary.

        Raises:
            InvalidInputError: There is no tokenizer where one is needed, or the prompts were given as embeddings, which have
                no text.
        """
        from .explanation import Explanation

        rows = range(len(self.attributions))  # type: ignore[arg-type]
        return [Explanation.from_output(self, row, tokenizer) for row in rows]

    def save(self, path: str | os.PathLike[str], tokenizer: Any = None) -> None:
        """Writes the explanation (not what `generate` returned besides `sequences`) to one `.safetensors` file, atomically.

        Args:
            path: File to write.
            tokenizer: If given, the tokens are stored too, so that the file can be read without it.
        """
        tensors = {name: self[name] for name in _TENSORS if self.get(name) is not None}
        tokens = self.tokens
        if tokenizer is not None:
            tokens = [tokenizer.convert_ids_to_tokens(row) for row in self.sequences.tolist()]  # type: ignore[union-attr]
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
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
        """
        file = TensorFile(path, "ExplainGenerateOutput.save")
        file.check_format(FORMAT, FORMAT_VERSION)
        metadata = file.metadata
        with reading(path):
            check(metadata, _Metadata, "the metadata")
            tensors: dict[str, Any] = file.tensors(_TENSORS)
            _check_sizes(tensors, metadata)
            return cls(
                **tensors,
                prompt_length=metadata["prompt_length"],
                layers=metadata["layers"],
                layer_names=metadata["layer_names"],
                model_name=metadata["model_name"],
                explain_config=stored_config(metadata["config"]),
                tokens=metadata["tokens"],
            )


def _check_sizes(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Raises InvalidInputError where what a file holds does not fit together."""
    layers, names, tokens = metadata["layers"], metadata["layer_names"], metadata["tokens"]
    sizes = {"P": metadata["prompt_length"]} | ({} if layers is None else {"L": len(layers)})
    check_tensors(tensors, _TENSORS, sizes)
    num_rows, num_steps, length = tensors["attributions"].shape
    if sizes["P"] + num_steps != length:
        raise InvalidInputError(f"`prompt_length` is {sizes['P']}, but {num_steps} of {length} positions are generated.")
    width = tensors["sequences"].shape[1]
    if width not in (length, num_steps):
        raise InvalidInputError(f"`sequences` must have {length} or {num_steps} positions, got {width}.")
    if None not in (layers, names) and len(layers) != len(names):
        raise InvalidInputError(f"`layers` and `layer_names` differ in length: {layers}, {names}.")
    if tokens is not None and (len(tokens), *{len(row) for row in tokens}) != (num_rows, width):
        raise InvalidInputError(f"`tokens` must be {num_rows} lists of {width} tokens.")
