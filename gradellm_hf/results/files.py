"""Explanations in files: one `.safetensors` file each, read without the model, its tokenizer or pickle."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from ..checks.arguments import choice
from ..checks.files import TensorFile, reading, write_tensors
from ..checks.schema import Natural, TensorKind, check, check_tensors, known_fields
from ..configuration import stored_config
from ..errors import InvalidInputError
from .image_files import IMAGE_TENSORS, StoredImage, packed_images, unpacked_images
from .kept import REST_OF, Keep, checked_keep, classes_of, heatmaps_of, reduced_by
from .rows import among_zeros, places, without_zeros
from .stored import DTYPES, Seen, names, read, stored, stored_kept

FORMAT = "gradellm_hf.explanation"
#: 2 since checksums are written, which releases that read version 1 do not expect; 3 if only some steps are explained: then
#: heatmaps have rows for these only; 4 if there are images, or if the file was asked to be small: then heatmaps are as `stored`
#: has them.
FORMAT_VERSION = 4
_FLOAT = (torch.float32,)
TENSORS = {
    "attributions": TensorKind("NS", _FLOAT),
    "token_probabilities": TensorKind("N", _FLOAT, (0, 1.001)),  # one, up to rounding
    "target_scores": TensorKind("N", _FLOAT, optional=True),
    "layer_attributions": TensorKind("LNS", _FLOAT, optional=True),
}
#: Of heatmaps in a small file: all scores, those of units before each step, or the strongest and how much the others are.
Form = Literal["all", "before", "strongest"]
_HEATMAPS = ("attributions", "layer_attributions")
_WRITER = "Explanation.save"


def write_explanation(
    path: str | os.PathLike[str], explanation: Any, keep: Any, score_dtype: Any, *, pictures: bool = False
) -> None:
    """Writes an explanation, atomically; see `Explanation.save`.

    Raises:
        InvalidInputError: `keep` or `score_dtype` is something else.
    """
    keep, dtype = checked_keep(keep), DTYPES[choice("score_dtype", score_dtype, list(DTYPES))]
    values = {field.name: getattr(explanation, field.name) for field in dataclasses.fields(explanation)}
    tensors = {name: value for name, value in values.items() if name in TENSORS and value is not None}
    metadata = {name: value for name, value in values.items() if name not in (*TENSORS, *REST_OF.values())}
    config, explained = values["explain_config"], values["explained"]
    metadata["explain_config"] = None if config is None else config.to_dict()
    version = 2
    if keep is not None or dtype != torch.float32 or explanation.rest is not None:
        version = FORMAT_VERSION
        others = {name: value for name, value in tensors.items() if name not in _HEATMAPS}
        heatmaps, form = small_tensors(explanation, keep, dtype)
        tensors, metadata["heatmaps"] = {**others, **heatmaps}, {"form": form, "score_dtype": score_dtype}
    elif explained is not None:
        version, rows = 3, places(explained)
        tensors |= {name: without_zeros(tensors[name], rows) for name in _HEATMAPS if name in tensors}
    if values["images"] is not None:
        version = FORMAT_VERSION
        metadata["images"], images = packed_images(values["images"], pictures)
        tensors |= images
    write_tensors(path, tensors, {"format": FORMAT, "format_version": version, **metadata})


def small_tensors(explanation: Any, keep: Keep | None, dtype: torch.dtype) -> tuple[dict[str, Tensor], Form]:
    """The heatmaps of an explanation as `stored` has them, and in which form.

    Args:
        explanation: With all scores or, if `keep` was applied before, with those that were kept.
        keep: What is to be kept; None: what there is.
        dtype: Of the scores.
    """
    tensors: dict[str, Tensor] = {}
    if keep is not None or explanation.rest is not None:
        for name, (scores, rest) in heatmaps_of(explanation).items():
            tensors |= stored_kept(name, *reduced_by(scores, rest, classes_of(explanation), keep), dtype)
        return tensors, "strongest"
    seen = seen_of(
        explanation.prompt_length, len(explanation.attributions), explanation.explained, explanation.token_ids is None
    )
    heatmaps = {name: scores for name, (scores, _) in heatmaps_of(explanation).items()}
    if any(scores.triu(seen.prompt_length + seen.own).any() for scores in heatmaps.values()):
        seen = seen._replace(later=True)
    for name, scores in heatmaps.items():
        tensors |= stored(name, scores, seen, dtype)
    return tensors, "all" if seen.later else "before"


def seen_of(prompt_length: int, num_steps: int, explained: list[bool] | None, own: bool = False) -> Seen:
    """Which scores the heatmaps of an explanation have."""
    return Seen(prompt_length, num_steps, None if explained is None else places(explained), own)


def read_explanation(path: str | os.PathLike[str], cls: type) -> Any:
    """What `write_explanation` wrote, as an object of this class.

    Raises:
        FileNotFoundError: There is no such file.
        InvalidInputError: It is not such a file, damaged, or of a format version that this release does not know.
    """
    file = TensorFile(path, _WRITER)
    file.check_format(FORMAT, FORMAT_VERSION)
    with reading(path):
        check(file.metadata, _Metadata, "the metadata")
        tensors = file.tensors({*TENSORS, *names(_HEATMAPS)})
        explained, form = file.metadata.get("explained"), file.metadata.get("heatmaps")
        if form is not None:
            tensors = _read_small(tensors, file.metadata, form["form"] == "all")
        elif explained is None:
            check_tensors(tensors, TENSORS, {})
        else:
            rows = places(explained)
            alone = {name: TENSORS[name]._replace(shape=TENSORS[name].shape.replace("N", "M")) for name in _HEATMAPS}
            sizes = {"N": len(explained), "M": len(rows), "S": len(file.metadata["tokens"])}  # before N x S is made
            check_tensors(tensors, {**TENSORS, **alone}, sizes, {"M": "`explained`"})
            tensors |= {name: among_zeros(tensors[name], rows, len(explained)) for name in _HEATMAPS if name in tensors}
        fields = {**known_fields(file.metadata, cls), **tensors}
        if fields.get("images") is not None:
            fields["images"] = unpacked_images(fields["images"], file.tensors(IMAGE_TENSORS))
        return cls(**{**fields, "explain_config": stored_config(fields["explain_config"])})


def _read_small(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], later: bool) -> dict[str, Any]:
    check(metadata["prompt_length"], Natural, "`prompt_length`")
    num_steps, explained = len(metadata["tokens"]) - metadata["prompt_length"], metadata.get("explained")
    if num_steps < 0:
        raise InvalidInputError(
            f"`prompt_length` is {metadata['prompt_length']}, but there are {len(metadata['tokens'])} units."
        )
    if explained is not None and len(explained) != num_steps:
        raise InvalidInputError(f"`explained` has {len(explained)} entries, but {num_steps} units are generated.")
    found: dict[str, Any] = {name: x for name, x in tensors.items() if name in TENSORS and name not in _HEATMAPS}
    of_steps = {name: kind for name, kind in TENSORS.items() if name not in _HEATMAPS}
    check_tensors(found, of_steps, {"N": num_steps})
    seen = seen_of(metadata["prompt_length"], num_steps, explained, metadata["token_ids"] is None)._replace(later=later)
    for name, before in zip(_HEATMAPS, ({}, {"L": -1})):
        if name in tensors or not before:
            found[name], found[REST_OF[name]] = read(name, tensors, seen, before)
    return found


class _Heatmaps(TypedDict):
    form: Form
    score_dtype: str


class _Later(TypedDict, total=False):
    """What files of earlier releases do not have."""

    explained: list[bool] | None
    heatmaps: _Heatmaps
    images: list[StoredImage] | None


class _Metadata(_Later):
    """What the metadata of a file must have besides `format` and `format_version`. `Explanation` checks the rest."""

    tokens: list[str]
    token_ids: Any
    prompt_length: Any
    text: Any
    special: Any
    explain_config: dict[str, Any] | None
