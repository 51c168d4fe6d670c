"""`HeadWeights`: how much each attention head of a model counts in a heatmap."""

import base64
import hashlib
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor

from ..checks.arguments import choice, numbers, string
from ..checks.files import TensorFile, reading, write_tensors
from ..checks.schema import Natural, TensorKind, check, check_tensors
from ..errors import GradELLMWarning, InvalidInputError

Feature = Literal["contribution", "magnitude"]
FILE_NAME = "head_weights.safetensors"  # in a folder, or a repository on the Hub
FORMAT, FORMAT_VERSION = "gradellm_hf.head_weights", 1
_WRITER = "HeadWeights.save"
_TENSORS = {"values": TensorKind("LH", (torch.float32,))}
_LEARN = "Learn weights of this model: `gradellm calibrate MODEL --output FILE`."


class _Metadata(TypedDict):
    feature: Feature
    model_type: str
    fingerprint: str | None
    report: dict[str, Any]


class _Stored(_Metadata):
    values: str
    shape: tuple[Natural, Natural]


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """How much each attention head counts: the heatmap is `a[n, i] = sum_{l, h} values[l, h] feature[l, h, n, i]`.

    `calibrate` learns them, once per model, from what changes when tokens are left out. They cost nothing when explaining. They
    belong to one model: its shape must be the same, and another kind of model is warned about.

    Args:
        values: Weights of every attention layer and query head of the model, at least 0, `[L, H]`. Only their ratios matter
            for the order of scores.
        feature: What is weighted. `"contribution"`: the positive part of `A <g, v>`, as without weights. `"magnitude"`:
            `A ||g|| ||v||`. It has no sign. If a sign is asked for (`positive_only=False` or `target="contrast"`), the
            contribution is weighted. It says what was read, not what that spoke for: of two sources that contradict each other,
            contributions find the one that decided.
        model_type: The `model_type` in the configuration of the model.
        fingerprint: A hash of the weights of the model that they were learned with.
        report: How they were learned, as JSON-ready values.

    Raises:
        InvalidInputError: A value is negative or not finite, all are 0, or an argument is of another type.

    Examples:
        >>> weights = HeadWeights(torch.rand(5, 6), "contribution", model_type="llama")
        >>> out = explain_generate(model, **inputs, explain_config=GradELLMConfig(head_weights=weights), max_new_tokens=4)
        >>> out.attributions.shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """

    values: Tensor
    feature: Feature
    model_type: str
    fingerprint: str | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choice("feature", self.feature, get_args(Feature))
        string("model_type", self.model_type)
        string("fingerprint", self.fingerprint, none="not known")
        check(self.report, dict[str, Any], "`report`")
        expected = "numbers of at least 0 for each layer and head, [L, H]"
        values = numbers("values", self.values, expected).detach().to("cpu", torch.float32).clone()
        if values.ndim != 2 or not values.numel():
            raise InvalidInputError(f"`values` must be {expected}; got shape {list(values.shape)}.")
        if not values.isfinite().all() or values.min() < 0 or not values.any():
            lowest, highest = values.min().item(), values.max().item()
            raise InvalidInputError(f"`values` must be {expected}, not all of them 0; got values from {lowest} to {highest}.")
        object.__setattr__(self, "values", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadWeights) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        layers, heads = self.values.shape
        return f"HeadWeights({layers} layers of {heads} heads, {self.feature!r}, {self.model_type!r}, digest={self.digest!r})"

    @property
    def digest(self) -> str:
        """A short hash of the values and of what they weight: the same digest, the same heatmaps."""
        digest = hashlib.sha256(f"{self.feature}{list(self.values.shape)}".encode())
        digest.update(self._bytes())
        return digest.hexdigest()[:12]

    def check_model(self, model_type: str, num_layers: int, num_heads: int) -> None:
        """Whether they are weights of such a model. Another kind of model of the same shape is warned about.

        Args:
            num_layers: Its attention layers.
            num_heads: Query heads of each; of the layer with most.

        Raises:
            InvalidInputError: The model has another number of layers or heads.

        Examples:
            >>> HeadWeights(torch.rand(5, 6), "contribution", model_type="llama").check_model("llama", 5, 6)
        """
        layers, heads = self.values.shape
        if (layers, heads) != (num_layers, num_heads):
            raise InvalidInputError(
                f"`head_weights` are of a `{self.model_type}` with {layers} attention layers of {heads} heads, but this "
                f"`{model_type}` has {num_layers} of {num_heads}. {_LEARN}"
            )
        if self.model_type != model_type:
            message = f"`head_weights` were learned with a `{self.model_type}`, and this is a `{model_type}`. {_LEARN}"
            warnings.warn(message, GradELLMWarning, stacklevel=2)

    def of_layer(self, layer: int, num_heads: int, first_head: int = 0) -> Tensor:
        """The weights of some heads of a layer, `[num_heads]`.

        Args:
            layer: Index among the attention layers.
            num_heads: How many heads.
            first_head: From which on: processes that share a model have some of its heads each.

        Raises:
            InvalidInputError: The layer has more heads than the configuration of its model says.

        Examples:
            >>> HeadWeights([[0.5, 1.0, 2.0]], "magnitude", model_type="llama").of_layer(0, num_heads=2, first_head=1)
            tensor([1., 2.])
        """
        end = first_head + num_heads
        if end > self.values.shape[1]:
            raise InvalidInputError(
                f"Attention layer {layer} has {end} heads, more than `num_attention_heads` in the model's configuration. They "
                "cannot be weighted: leave `head_weights` out."
            )
        return self.values[layer, first_head:end]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, atomically.

        To publish it, upload it as `head_weights.safetensors` to a repository on the Hub.

        Raises:
            OSError: The file cannot be written.

        Examples:
            >>> weights = HeadWeights(torch.rand(5, 6), "contribution", model_type="llama")
            >>> weights.save("weights.safetensors")
            >>> HeadWeights.load("weights.safetensors") == weights
            True
        """
        write_tensors(path, {"values": self.values}, {"format": FORMAT, "format_version": FORMAT_VERSION, **self._metadata()})

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> "HeadWeights":
        """Reads a file that `save` wrote; without pickle.

        Args:
            source: The file; or a folder or a repository on the Hub (`"user/name"`) that has it as `head_weights.safetensors`.

        Raises:
            FileNotFoundError: There is no such file, here or on the Hub.
            InvalidInputError: It is not such a file, damaged, or of a format version that this release does not know.

        Examples:
            >>> HeadWeights(torch.rand(5, 6), "magnitude", model_type="llama").save("weights.safetensors")
            >>> HeadWeights.load("weights.safetensors").feature
            'magnitude'
        """
        path = _found(source)
        file = TensorFile(path, _WRITER)
        file.check_format(FORMAT, FORMAT_VERSION)
        with reading(path):
            check(file.metadata, _Metadata, "the metadata")
            tensors = file.tensors(_TENSORS)
            check_tensors(tensors, _TENSORS, {})
            return cls(tensors["values"], **{name: file.metadata[name] for name in _Metadata.__annotations__})

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready values.

        Examples:
            >>> weights = HeadWeights([[1.0]], "magnitude", model_type="llama")
            >>> HeadWeights.from_dict(weights.to_dict()) == weights
            True
        """
        return {"values": base64.b64encode(self._bytes()).decode(), "shape": list(self.values.shape), **self._metadata()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HeadWeights":
        """The inverse of `to_dict`.

        Raises:
            InvalidInputError: It is not what `to_dict` returns.

        Examples:
            >>> HeadWeights.from_dict(HeadWeights([[1.0]], "magnitude", model_type="llama").to_dict()).values
            tensor([[1.]])
        """
        check(values, _Stored, "`head_weights`")
        try:
            content = bytearray(base64.b64decode(values["values"], validate=True))
            found = torch.frombuffer(content, dtype=torch.float32).reshape(values["shape"])
        except (ValueError, RuntimeError) as error:
            raise InvalidInputError(f"The `values` of `head_weights` are not numbers of their shape: {error}") from error
        return cls(found, **{name: values[name] for name in _Metadata.__annotations__})

    def _metadata(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _Metadata.__annotations__}

    def _bytes(self) -> bytes:
        return bytes(self.values.flatten().view(torch.uint8).tolist())


def head_weights(given: Any) -> HeadWeights | None:
    """What was given as `head_weights`: read from a file if it is a path, or made of what `to_dict` returned.

    Raises:
        InvalidInputError, OSError: As `HeadWeights.load` and `from_dict`; or it is something else.
    """
    if given is None or isinstance(given, HeadWeights):
        return given
    if isinstance(given, dict):
        return HeadWeights.from_dict(given)
    if isinstance(given, str | os.PathLike):
        return HeadWeights.load(given)
    raise InvalidInputError(
        f"`head_weights` must be HeadWeights, a file or a repository on the Hub that holds them, or None; got {given!r}."
    )


def _found(source: Any) -> Path:
    """The file that is meant."""
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise InvalidInputError(f"`head_weights` are in a file, a folder or a repository on the Hub, got {source!r}.")
    path = Path(source)
    if path.is_dir():
        return path / FILE_NAME
    names_a_repository = isinstance(source, str) and source.count("/") == 1 and source[0] not in "/.~"
    if path.exists() or path.suffix == ".safetensors" or not names_a_repository:
        return path
    from transformers.utils import cached_file

    try:
        downloaded: Any = cached_file(source, FILE_NAME)
        return Path(downloaded)
    except OSError as error:
        raise FileNotFoundError(
            f"There is no file or folder {source!r} here, and no {FILE_NAME!r} in a repository of that name: {error}"
        ) from error
