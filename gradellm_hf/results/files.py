"""Explanations in files: one `.safetensors` file each, read without the model, its tokenizer or pickle."""

import os
from collections.abc import Mapping
from typing import Any, TypedDict

import torch

from ..checks.files import TensorFile, reading, write_tensors
from ..checks.schema import TensorKind, check, check_tensors, known_fields
from ..configuration import stored_config

FORMAT = "gradellm_hf.explanation"
FORMAT_VERSION = 2  # since checksums are written, which releases that read version 1 do not expect
_FLOAT = (torch.float32,)
TENSORS = {
    "attributions": TensorKind("NS", _FLOAT),
    "token_probabilities": TensorKind("N", _FLOAT, (0, 1.001)),  # one, up to rounding
    "target_scores": TensorKind("N", _FLOAT, optional=True),
    "layer_attributions": TensorKind("LNS", _FLOAT, optional=True),
}
_WRITER = "Explanation.save"


def write_explanation(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Writes the fields of an explanation, atomically."""
    tensors = {name: value for name, value in values.items() if name in TENSORS and value is not None}
    metadata = {name: value for name, value in values.items() if name not in TENSORS}
    config = values["explain_config"]
    metadata["explain_config"] = None if config is None else config.to_dict()
    write_tensors(path, tensors, {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata})


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
        check_tensors(tensors, TENSORS, {})
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
