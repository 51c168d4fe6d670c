"""Explanations in files: one `.safetensors` file each, read without the model, its tokenizer or pickle."""

import os
from collections.abc import Mapping
from typing import Any, TypedDict

import torch

from ..checks.files import TensorFile, reading, write_tensors
from ..checks.schema import TensorKind, check, check_tensors, known_fields
from ..configuration import stored_config
from .image_files import IMAGE_TENSORS, StoredImage, packed_images, unpacked_images
from .rows import among_zeros, places, without_zeros

FORMAT = "gradellm_hf.explanation"
#: 2 since checksums are written, which releases that read version 1 do not expect; 3 if only some steps are explained: then
#: heatmaps have rows for these only; 4 if there are images, which earlier releases would take for special tokens.
FORMAT_VERSION = 4
_FLOAT = (torch.float32,)
TENSORS = {
    "attributions": TensorKind("NS", _FLOAT),
    "token_probabilities": TensorKind("N", _FLOAT, (0, 1.001)),  # one, up to rounding
    "target_scores": TensorKind("N", _FLOAT, optional=True),
    "layer_attributions": TensorKind("LNS", _FLOAT, optional=True),
}
_HEATMAPS = ("attributions", "layer_attributions")
_WRITER = "Explanation.save"


def write_explanation(path: str | os.PathLike[str], values: Mapping[str, Any], *, pictures: bool = False) -> None:
    """Writes the fields of an explanation, atomically. `pictures`: those of its images too."""
    tensors = {name: value for name, value in values.items() if name in TENSORS and value is not None}
    explained = values["explained"]
    if explained is not None:
        rows = places(explained)
        tensors |= {name: without_zeros(tensors[name], rows) for name in _HEATMAPS if name in tensors}
    metadata = {name: value for name, value in values.items() if name not in TENSORS}
    config = values["explain_config"]
    metadata["explain_config"] = None if config is None else config.to_dict()
    version = FORMAT_VERSION - (2 if explained is None else 1)
    if values["images"] is not None:
        version = FORMAT_VERSION
        metadata["images"], images = packed_images(values["images"], pictures)
        tensors |= images
    write_tensors(path, tensors, {"format": FORMAT, "format_version": version, **metadata})


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
        tensors = file.tensors(TENSORS)
        explained = file.metadata.get("explained")
        if explained is None:
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


class _Later(TypedDict, total=False):
    """What files of earlier releases do not have."""

    explained: list[bool] | None
    images: list[StoredImage] | None


class _Metadata(_Later):
    """What the metadata of a file must have besides `format` and `format_version`. `Explanation` checks the rest."""

    tokens: list[str]
    token_ids: Any
    prompt_length: Any
    text: Any
    special: Any
    explain_config: dict[str, Any] | None
