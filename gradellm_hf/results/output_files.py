"""Explained generations in files: one `.safetensors` file each, read without the model, its tokenizer or pickle."""

import os
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from ..checks.arguments import choice
from ..checks.files import TensorFile, reading, write_tensors
from ..checks.schema import Natural, TensorKind, check, check_tensors
from ..configuration import stored_config
from ..errors import InvalidInputError
from ..text.token_text import special_tokens
from .fields import check_rest
from .kept import REST_OF, Keep, checked_keep, numbered, reduced_by
from .rows import among_zeros, without_zeros
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


def write_output(path: str | os.PathLike[str], output: Any, tokenizer: Any, keep: Any, score_dtype: Any) -> None:
    """See `ExplainGenerateOutput.save`."""
    keep, dtype = checked_keep(keep), DTYPES[choice("score_dtype", score_dtype, list(DTYPES))]
    values = {name: getattr(output, name) for name in _TENSORS}
    tensors = {name: value for name, value in values.items() if value is not None}
    version, form = 1 if output.explained_mask is None else 2, {}
    if keep is not None or dtype != torch.float32 or output.rest is not None:
        heatmaps = _small_tensors(output, tokenizer, keep, dtype)
        tensors = {**{name: x for name, x in tensors.items() if name not in _HEATMAPS}, **heatmaps}
        kind: Literal["before", "strongest"] = "strongest" if CLASSES in heatmaps else "before"
        version, form = FORMAT_VERSION, {"heatmaps": _Heatmaps(form=kind, score_dtype=score_dtype)}
    else:
        rows = _explained_rows(tensors)
        tensors |= {name: without_zeros(tensors[name], rows) for name in _HEATMAPS if name in tensors}
    tokens = output.tokens
    if tokenizer is not None:
        tokens = [tokenizer.convert_ids_to_tokens(row) for row in output.sequences.tolist()]
    metadata = {
        "format": FORMAT,
        "format_version": version,
        **form,
        "prompt_length": output.prompt_length,
        "layers": output.layers,
        "layer_names": output.layer_names,
        "model_name": output.model_name,
        "config": None if output.explain_config is None else output.explain_config.to_dict(),
        "tokens": tokens,
    }
    write_tensors(path, tensors, metadata)


def read_output(path: str | os.PathLike[str], cls: type) -> Any:
    """What `write_output` wrote, as an object of this class; see `ExplainGenerateOutput.load`."""
    file = TensorFile(path, "ExplainGenerateOutput.save")
    file.check_format(FORMAT, FORMAT_VERSION)
    metadata = file.metadata
    with reading(path):
        check(metadata, _Metadata, "the metadata")
        tensors: dict[str, Any] = file.tensors({*_TENSORS, *names(_HEATMAPS)})
        is_small = "heatmaps" in metadata
        if is_small:
            tensors = _read_small(tensors, metadata)
        rows = _check_sizes(tensors, metadata, is_small=is_small)
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


def _small_tensors(output: Any, tokenizer: Any, keep: Keep | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """The heatmaps as `stored` has them: with all scores, or with the strongest."""
    heatmaps = {
        name: (scores.cpu(), getattr(output, REST_OF[name]))
        for name in _HEATMAPS
        if (scores := getattr(output, name)) is not None
    }
    tensors: dict[str, Tensor] = {}
    if keep is None and output.rest is None:
        rows = None if output.explained_mask is None else output.explained_mask.any(0).nonzero().flatten().tolist()
        seen = Seen(output.prompt_length, output.step_mask.shape[1], rows)
        for name, (scores, _) in heatmaps.items():
            tensors |= stored(name, scores, seen, dtype)
        return tensors
    if output.rest is not None:
        classes = output.rest.classes
    else:
        classes = torch.stack([_classes(output, row, tokenizer) for row in range(len(output.attributions))])
    for name, (scores, rest) in heatmaps.items():
        tensors |= stored_kept(name, *reduced_by(scores, rest, classes, keep), dtype)
    return tensors


def _classes(output: Any, row: int, tokenizer: Any) -> Tensor:
    """The classes of a row's positions, `[S]`: padding is none of the others."""
    kept = torch.cat([output.prompt_mask[row], output.step_mask[row]]).tolist()
    length, special = len(kept), [False] * len(kept)
    if tokenizer is not None and output.sequences.shape[1] == length:
        special = special_tokens(tokenizer, output.sequences[row].tolist())
    first = kept.index(True) if True in kept else None
    return numbered([(i >= output.prompt_length, kept[i], kept[i] and special[i], i == first) for i in range(length)])


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
    layers, layer_names, tokens = metadata["layers"], metadata["layer_names"], metadata["tokens"]
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
    if len(layers) != len(layer_names):
        raise InvalidInputError(f"`layers` and `layer_names` differ in length: {layers}, {layer_names}.")
    if tokens is not None and (len(tokens), *{len(row) for row in tokens}) != (num_rows, width):
        raise InvalidInputError(f"`tokens` must be {num_rows} lists of {width} tokens.")
    return rows
