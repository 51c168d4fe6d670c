"""The files of a dataset of explanations: shards of several prompts each, and how they are written."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from ..checks.files import TensorFile, reading, write_tensors
from ..checks.schema import Natural, TensorKind, check, check_tensors, known_fields
from ..errors import InvalidInputError, may_pass
from ..results.explanation import Explanation
from ..results.files import seen_of, small_tensors
from ..results.kept import REST_OF, Keep
from ..results.stored import names, read
from ..text.segments import Segment

FORMAT = "gradellm_hf.shard"
FORMAT_VERSION = 2  # if scores are float16 with a power of two for each row, or only the strongest are kept; else 1
SHARDS = "shard-*.safetensors"  # what their files are called
_WRITER = "explain_dataset"
_ADVICE = "Delete it and run the job again, which explains the prompts of this file anew."
_FLOAT, _INT = (torch.float32,), (torch.int32,)
_HEATMAPS = ("attributions", "layer_attributions")  # as `results.stored` has them
_TENSORS = {  # of an explanation, besides its heatmaps: B bytes of text
    "token_ids": TensorKind("S", _INT, (0, 2**31 - 1)),
    "special": TensorKind("S", (torch.bool,)),
    "text": TensorKind("B", (torch.uint8,)),
    "piece_lengths": TensorKind("S", _INT, (0, 2**31 - 1)),
    "token_probabilities": TensorKind("N", _FLOAT),
    "target_scores": TensorKind("N", _FLOAT, optional=True),
    "explained": TensorKind("N", (torch.bool,), optional=True),
}


class _Record(TypedDict):
    index: Natural
    id: Any
    error: str | None
    prompt_lengths: list[Natural]


class Record(_Record, total=False):
    """What a shard knows of a prompt. Those of the first release know no `segments`."""

    segments: list[Segment] | None


class _Common(TypedDict, total=False):
    """What the explanations of a shard have in common; empty if there are none."""

    layers: list[Natural] | None
    layer_names: list[str] | None
    model_name: str | None


class _Metadata(TypedDict):
    prompts: list[Record]
    common: _Common


@dataclass
class Result:
    """What became of a prompt: its explanations (`num_return_sequences` of them), or why there are none.

    Attributes:
        index: Position of the prompt in the input.
        id: The name that its record gives it.
        explanations: Empty if it failed.
        error: Class and message of what went wrong.
    """

    index: int
    id: Any
    explanations: list[Explanation]
    error: str | None = None


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.safetensors"


def shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob(SHARDS))


class NewShard:
    """The results of some prompts, on their way to one safetensors file.

    Of each heatmap `[N, S]` only the scores of positions before the step are there, one step after the other:
    `N * P + N * (N - 1) / 2` of them; or the strongest, and the sums of the others. Texts are UTF-8 bytes.

    Args:
        dtype: Of the scores.
        keep: Which of them are kept; see `Explanation.compact`. What was reduced before stays as it is.
    """

    def __init__(self, dtype: torch.dtype, keep: Keep | None = None):
        self._dtype, self._keep = dtype, keep
        self._tensors: dict[str, Tensor] = {}
        self._records: list[dict[str, Any]] = []
        self._common: dict[str, Any] = {}

    def add(self, result: Result) -> None:
        """Adds what became of a prompt."""
        lengths = [explanation.prompt_length for explanation in result.explanations]
        segments = result.explanations[0].segments if result.explanations else None
        record = {"index": result.index, "id": result.id, "error": result.error, "prompt_lengths": lengths}
        self._records.append({**record, "segments": segments})
        for row, explanation in enumerate(result.explanations):
            self._common = {name: getattr(explanation, name) for name in ("layers", "layer_names", "model_name")}
            packed = _packed(explanation, self._dtype, self._keep)
            self._tensors |= {_prefix(result.index, row) + name: x for name, x in packed.items()}

    def write(self, path: Path) -> None:
        """Writes the file, as a whole or not at all."""
        version = 1 if self._keep is None and self._dtype == torch.float32 else FORMAT_VERSION
        metadata = {"format": FORMAT, "format_version": version, "prompts": self._records, "common": self._common}
        write_tensors(path, self._tensors, metadata)


class Shard:
    """A file that `NewShard` wrote; tensors are read when they are asked for.

    Attributes:
        prompts: By position in the input, what the file knows of a prompt: `id`, `error` and `prompt_lengths`.

    Raises:
        InvalidInputError: It is not such a file, or of a later version.
    """

    def __init__(self, path: Path):
        self._path, self._file = path, TensorFile(path, _WRITER)
        self._file.check_format(FORMAT, FORMAT_VERSION)
        metadata = self._file.metadata
        with reading(path, _ADVICE):
            check(metadata, _Metadata, "the metadata")
            self.prompts: dict[int, Record] = {record["index"]: record for record in metadata["prompts"]}
            if len(self.prompts) < len(metadata["prompts"]):
                raise InvalidInputError("a prompt is in it twice.")
            for index, record in self.prompts.items():
                if (record["error"] is None) != bool(record["prompt_lengths"]):
                    raise InvalidInputError(f"prompt {index} has an error and explanations, or neither.")
        self._common = known_fields(metadata["common"], _Common)

    def explanations(self, index: int, **attributes: Any) -> list[Explanation]:
        """The explanations of a prompt; none if it failed.

        Args:
            attributes: Further attributes of the explanations, which the file does not hold.
        """
        explanations = []
        record = self.prompts[index]
        attributes = {**self._common, "segments": record.get("segments"), **attributes}
        with reading(self._path, _ADVICE):
            for row, prompt_length in enumerate(record["prompt_lengths"]):
                prefix = _prefix(index, row)
                tensors = self._file.tensors(prefix + name for name in (*_TENSORS, *names(_HEATMAPS)))
                tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
                explanations.append(_unpacked(tensors, prompt_length, attributes))
        return explanations

    def is_worth_another_try(self, index: int) -> bool:
        """Whether a prompt failed with an error that may pass."""
        error = self.prompts[index]["error"]
        return error is not None and may_pass(error)

    def result(self, index: int) -> Result:
        """What became of a prompt."""
        record = self.prompts[index]
        return Result(index, record["id"], self.explanations(index), record["error"])


def _prefix(index: int, row: int) -> str:
    return f"{index}.{row}."


def _packed(explanation: Explanation, dtype: torch.dtype, keep: Keep | None) -> dict[str, Tensor]:
    heatmaps, _ = small_tensors(explanation, None if explanation.rest is not None else keep, dtype)
    tensors = {
        "token_ids": torch.tensor(explanation.token_ids, dtype=torch.int32),
        "special": torch.tensor(explanation.special, dtype=torch.bool),
        "text": torch.tensor(list(explanation.text.encode(errors="surrogatepass")), dtype=torch.uint8),
        "piece_lengths": torch.tensor([len(token) for token in explanation.tokens], dtype=torch.int32),
        "token_probabilities": explanation.token_probabilities,
        **heatmaps,
    }
    if explanation.target_scores is not None:
        tensors["target_scores"] = explanation.target_scores
    if explanation.explained is not None:
        tensors["explained"] = torch.tensor(explanation.explained, dtype=torch.bool)
    return tensors


def _unpacked(tensors: dict[str, Tensor], prompt_length: int, attributes: dict[str, Any]) -> Explanation:
    check_tensors(tensors, _TENSORS, {})
    length = len(tensors["token_ids"])
    num_steps = length - prompt_length
    if num_steps < 0:
        raise InvalidInputError(f"the prompt has {prompt_length} tokens, the whole text {length}.")
    # Before anything of N x S is made: a few bytes may claim any N and S.
    check_tensors(tensors, _TENSORS, {"S": length, "N": num_steps})
    explained = None if "explained" not in tensors else tensors["explained"].tolist()
    seen = seen_of(prompt_length, num_steps, explained)
    heatmaps: dict[str, Any] = {}
    of_layers = {"L": len(attributes.get("layers") or ())}
    for name in _HEATMAPS:
        if name in tensors or name == "attributions":
            sizes = {} if name == "attributions" else of_layers
            heatmaps[name], heatmaps[REST_OF[name]] = read(name, tensors, seen, sizes)
    text = _text(tensors["text"])
    return Explanation(
        tokens=_pieces(text, tensors["piece_lengths"].tolist()),
        token_ids=tensors["token_ids"].tolist(),
        prompt_length=prompt_length,
        **heatmaps,
        token_probabilities=tensors["token_probabilities"],
        text=text,
        special=tensors["special"].tolist(),
        target_scores=tensors.get("target_scores"),
        explained=explained,
        **attributes,
    )


def _text(content: Tensor) -> str:
    try:
        return content.numpy().tobytes().decode(errors="surrogatepass")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"`text` is not UTF-8: {error}") from error


def _pieces(text: str, lengths: list[int]) -> list[str]:
    if sum(lengths) != len(text):
        raise InvalidInputError(f"`piece_lengths` add up to {sum(lengths)}, but the text has {len(text)} characters.")
    return [text[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
