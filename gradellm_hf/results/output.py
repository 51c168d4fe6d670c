"""What an explained generation returns, and its file format: one safetensors file, no pickle."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import compress
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ..architecture.compat import cache_named_as_by_generate
from ..checks.arguments import choice, whole_number
from ..checks.files import TensorFile, reading, write_tensors
from ..checks.schema import Natural, TensorKind, check, check_tensors
from ..configuration import GradELLMConfig, stored_config
from ..errors import InvalidInputError
from ..text.chats import Chat
from ..text.rest import Rest
from ..text.token_text import special_tokens, token_texts
from .chats import of_chats
from .explanation import Explanation
from .fields import check_rest
from .kept import REST_OF, Keep, checked_keep, numbered, reduced_by
from .rows import among_zeros, places, without_zeros
from .stored import CLASSES, DTYPES, Seen, names, read, stored, stored_kept

FORMAT = "gradellm_hf"
#: With `explained_mask` 2: heatmaps have rows only for steps that are explained in some row; 3 if the file was asked to be
#: small: then they are as `stored` has them; else 1.
FORMAT_VERSION = 3
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


class _Heatmaps(TypedDict):
    form: Literal["before", "strongest"]
    score_dtype: str


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
                then know their messages, as those of `GradELLM.explain` do. A prompt that is none is a text.
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
        return rows if chats is None else of_chats(rows, tokenizer, chats, template)

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
        keep, dtype = checked_keep(keep), DTYPES[choice("score_dtype", score_dtype, list(DTYPES))]
        values = {name: getattr(self, name) for name in _TENSORS}
        tensors = {name: value for name, value in values.items() if value is not None}
        version, form = 1 if self.explained_mask is None else 2, {}
        if keep is not None or dtype != torch.float32 or self.rest is not None:
            heatmaps = self._small_tensors(tokenizer, keep, dtype)
            tensors = {**{name: x for name, x in tensors.items() if name not in _HEATMAPS}, **heatmaps}
            kind = "strongest" if CLASSES in heatmaps else "before"
            version, form = FORMAT_VERSION, {"heatmaps": _Heatmaps(form=kind, score_dtype=score_dtype)}
        else:
            rows = _explained_rows(tensors)
            tensors |= {name: without_zeros(tensors[name], rows) for name in _HEATMAPS if name in tensors}
        tokens = self.tokens
        if tokenizer is not None:
            tokens = [tokenizer.convert_ids_to_tokens(row) for row in self.sequences.tolist()]
        metadata = {
            "format": FORMAT,
            "format_version": version,
            **form,
            "prompt_length": self.prompt_length,
            "layers": self.layers,
            "layer_names": self.layer_names,
            "model_name": self.model_name,
            "config": None if self.explain_config is None else self.explain_config.to_dict(),
            "tokens": tokens,
        }
        write_tensors(path, tensors, metadata)

    def _small_tensors(self, tokenizer: Any, keep: Keep | None, dtype: torch.dtype) -> dict[str, Tensor]:
        heatmaps = {
            name: (scores.cpu(), getattr(self, REST_OF[name]))
            for name in _HEATMAPS
            if (scores := getattr(self, name)) is not None
        }
        tensors: dict[str, Tensor] = {}
        if keep is None and self.rest is None:
            rows = None if self.explained_mask is None else self.explained_mask.any(0).nonzero().flatten().tolist()
            seen = Seen(self.prompt_length, self.step_mask.shape[1], rows)
            for name, (scores, _) in heatmaps.items():
                tensors |= stored(name, scores, seen, dtype)
            return tensors
        classes = torch.stack([self._classes(row, tokenizer) for row in range(len(self.attributions))])
        for name, (scores, rest) in heatmaps.items():
            tensors |= stored_kept(name, *reduced_by(scores, rest, classes, keep), dtype)
        return tensors

    def _classes(self, row: int, tokenizer: Any) -> Tensor:
        """The classes of a row's positions, `[S]`: padding is none of the others."""
        kept = torch.cat([self.prompt_mask[row], self.step_mask[row]]).tolist()
        length, special = len(kept), [False] * len(kept)
        if tokenizer is not None and self.sequences.shape[1] == length:
            special = special_tokens(tokenizer, self.sequences[row].tolist())
        first = kept.index(True) if True in kept else None
        return numbered([(i >= self.prompt_length, kept[i], kept[i] and special[i], i == first) for i in range(length)])

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
            tensors: dict[str, Any] = file.tensors({*_TENSORS, *names(_HEATMAPS)})
            if "heatmaps" in metadata:
                tensors = _read_small(tensors, metadata)
            rows = _check_sizes(tensors, metadata, is_small="heatmaps" in metadata)
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


def _read_small(tensors: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """The tensors of an output, of those of a file that was asked to be small."""
    check(metadata["heatmaps"], _Heatmaps, "`heatmaps`")
    others = {name: x for name, x in tensors.items() if name in _TENSORS and name not in _HEATMAPS}
    sizes = {"P": metadata["prompt_length"], "L": len(metadata["layers"])}
    check_tensors(others, {name: kind for name, kind in _TENSORS.items() if name not in _HEATMAPS}, sizes)
    num_rows, num_steps = others["step_mask"].shape
    seen = Seen(sizes["P"], num_steps, _explained_rows(others) if "explained_mask" in others else None)
    for name, before in zip(_HEATMAPS, ("R", "RL")):
        if name in tensors or name == "attributions":
            known = {letter: {**sizes, "R": num_rows}[letter] for letter in before}
            others[name], rest = read(name, tensors, seen, known)
            if rest is not None:
                check_rest(REST_OF[name], rest, others[name], sizes["P"])
            others[REST_OF[name]] = rest
    return others


def _check_sizes(tensors: dict[str, Tensor], metadata: dict[str, Any], *, is_small: bool) -> list[int]:
    """The steps for which heatmaps have a row. Raises InvalidInputError if what a file holds does not fit together."""
    layers, names, tokens = metadata["layers"], metadata["layer_names"], metadata["tokens"]
    check_tensors(tensors, {name: _TENSORS[name] for name in ("step_mask", "explained_mask")}, {})
    num_steps = tensors["step_mask"].shape[1]
    rows = list(range(num_steps)) if is_small else _explained_rows(tensors)  # a small one has rows for all by now
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
