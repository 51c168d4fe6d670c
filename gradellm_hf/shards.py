"""The files of a dataset of explanations: shards of several prompts each, and how they are written."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import InvalidInputError
from .explanation import Explanation
from .files import PARTIAL, read_metadata, write_atomically

FORMAT = "gradellm_hf.shard"
FORMAT_VERSION = 1
_WRITER = "explain_dataset"


@dataclass
class Result:
    """What became of a prompt: its explanations (`num_return_sequences` of them), or why there are none.

    Attributes:
        index: Position of the prompt in the input.
        id: The name that its record gives it.
        explanations: Empty where it failed.
        error: Class and message of what went wrong.
    """

    index: int
    id: Any
    explanations: list[Explanation]
    error: str | None = None


def remove_partial_files(folder: Path) -> None:
    """Removes what processes that were killed while they wrote have left behind."""
    for partial in folder.glob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.safetensors"


def shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


def write_shard(path: Path, results: Iterable[Result], dtype: torch.dtype) -> None:
    """Writes what became of some prompts to one safetensors file.

    Of each heatmap `[N, S]` the scores of what a step can see are kept, one step after the other: `N * P + N * (N - 1) / 2`
    of them. Texts are UTF-8 bytes.

    Args:
        dtype: Of the scores.
    """
    tensors: dict[str, Tensor] = {}
    records: list[dict[str, Any]] = []
    common: dict[str, Any] = {}
    for result in results:
        lengths = [explanation.prompt_length for explanation in result.explanations]
        records.append({"index": result.index, "id": result.id, "error": result.error, "prompt_lengths": lengths})
        for row, explanation in enumerate(result.explanations):
            common = {name: getattr(explanation, name) for name in ("layers", "layer_names", "model_name")}
            tensors |= {_prefix(result.index, row) + name: x for name, x in _packed(explanation, dtype).items()}
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "prompts": records, "common": common}
    header = {name: json.dumps(value, default=str) for name, value in metadata.items()}
    write_atomically(path, save(tensors, header))


class Shard:
    """A file that `write_shard` wrote; tensors are read when they are asked for.

    Attributes:
        prompts: By position in the input, what the file knows of a prompt: `id`, `error` and `prompt_lengths`.

    Raises:
        InvalidInputError: It is not such a file, or of a later version.
    """

    def __init__(self, path: Path):
        metadata = read_metadata(path, _WRITER)
        if metadata.get("format") != FORMAT or metadata["format_version"] > FORMAT_VERSION:
            raise InvalidInputError(f"{str(path)!r} is not a shard that this release of gradellm_hf can read.")
        self.prompts: dict[int, dict[str, Any]] = {record["index"]: record for record in metadata["prompts"]}
        self._common = metadata["common"]
        self._file = safe_open(path, "pt")  # mapped, not read
        self._names = list(self._file.keys())

    def explanations(self, index: int, **attributes: Any) -> list[Explanation]:
        """The explanations of a prompt; none where it failed.

        Args:
            attributes: Further attributes of the explanations, which the file does not hold.
        """
        explanations = []
        for row, prompt_length in enumerate(self.prompts[index]["prompt_lengths"]):
            prefix = _prefix(index, row)
            names = [name for name in self._names if name.startswith(prefix)]
            tensors = {name.removeprefix(prefix): self._file.get_tensor(name) for name in names}
            explanations.append(_unpacked(tensors, prompt_length, {**self._common, **attributes}))
        return explanations


def check_storable(explanation: Explanation, dtype: torch.dtype) -> None:
    """Raises InvalidInputError where scores are too large for `dtype`."""
    for scores in (explanation.attributions, explanation.layer_attributions):
        if scores is not None and not scores.to(dtype).isfinite().all():
            raise InvalidInputError(f"The largest scores do not fit into {dtype}. Store them as float32.")


def _prefix(index: int, row: int) -> str:
    return f"{index}.{row}."


def _visible(num_steps: int, length: int) -> Tensor:
    """Which positions each step can see, `[N, S]`."""
    return torch.ones(num_steps, length, dtype=torch.bool).tril(length - num_steps - 1)


def _packed(explanation: Explanation, dtype: torch.dtype) -> dict[str, Tensor]:
    visible = _visible(*explanation.attributions.shape)
    tensors = {
        "token_ids": torch.tensor(explanation.token_ids, dtype=torch.int32),
        "special": torch.tensor(explanation.special, dtype=torch.bool),
        "text": torch.tensor(list(explanation.text.encode()), dtype=torch.uint8),
        "piece_lengths": torch.tensor([len(token) for token in explanation.tokens], dtype=torch.int32),
        "token_probabilities": explanation.token_probabilities,
        "attributions": explanation.attributions[visible].to(dtype),
    }
    if explanation.target_scores is not None:
        tensors["target_scores"] = explanation.target_scores
    if explanation.layer_attributions is not None:
        tensors["layer_attributions"] = explanation.layer_attributions[:, visible].to(dtype)
    return tensors


def _unpacked(tensors: dict[str, Tensor], prompt_length: int, attributes: dict[str, Any]) -> Explanation:
    length = len(tensors["token_ids"])
    visible = _visible(length - prompt_length, length)

    def heatmap(scores: Tensor) -> Tensor:
        return torch.zeros(visible.shape).masked_scatter(visible, scores.float())

    text = tensors["text"].numpy().tobytes().decode()
    layers = tensors.get("layer_attributions")
    return Explanation(
        tokens=list(_pieces(text, tensors["piece_lengths"].tolist())),
        token_ids=tensors["token_ids"].tolist(),
        prompt_length=prompt_length,
        attributions=heatmap(tensors["attributions"]),
        token_probabilities=tensors["token_probabilities"],
        text=text,
        special=tensors["special"].tolist(),
        target_scores=tensors.get("target_scores"),
        layer_attributions=None if layers is None else torch.stack([heatmap(layer) for layer in layers]),
        **attributes,
    )


def _pieces(text: str, lengths: list[int]) -> Iterator[str]:
    start = 0
    for length in lengths:
        yield text[start : start + length]
        start += length
