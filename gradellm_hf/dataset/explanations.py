"""What `explain_dataset` wrote, read lazily and in the order of the prompts."""

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks.files import reading
from ..configuration import stored_config
from ..errors import InvalidInputError
from ..jobs.manifest import MANIFEST, Manifest, read_manifest
from ..results.explanation import Explanation
from .shards import Shard, shard_paths

FORMAT = "gradellm_hf.dataset"
_OPEN_SHARDS = 16  # chosen by hand: far below the 256 files that systems let a process have open, enough to read in order


class _Manifest(Manifest):
    explain_config: dict[str, Any]


@dataclass(frozen=True)
class FailedPrompt:
    """Takes the place of the explanations of a prompt that failed. It is empty, and so false, and says why.

    Attributes:
        index: Position of the prompt in the input.
        id: The name that its record gives it.
        error: Class and message of what went wrong.
    """

    index: int
    id: Any
    error: str

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Explanation]:
        return iter(())

    def __getattr__(self, name: str) -> Any:
        if name in {*dir(Explanation), *Explanation.__dataclass_fields__}:
            raise AttributeError(
                f"There is no `{name}`: prompt {self.index} failed ({self.error}). Skip such prompts: `if explanation:`."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class DatasetExplanations(Sequence[Any]):
    """The explanations of many prompts, in the order of the prompts. They stay in their files until they are asked for.

    `explanations[i]` is the `Explanation` of prompt `i`, or a list of them if several sequences were returned per prompt. If
    the prompt failed, it is a `FailedPrompt`, which is false. So there is one entry per prompt, also when iterating.

    Attributes:
        manifest: How they were made.
        ids: The `id` of each prompt's record; None if it has none.
        errors: Class and message of what went wrong, by the position of the prompts that failed.

    Raises:
        FileNotFoundError: There is no such folder, or no job was started in it.
        InvalidInputError: The folder is damaged, or the job is not finished.

    Examples:
        >>> prompts = [{"id": "a", "prompt": "The capital of Italy is"}, {"id": "b", "prompt": ""}]
        >>> explanations = explain_dataset(GradELLM(model, tokenizer), prompts, "explained", max_new_tokens=2)
        >>> explanations.ids, bool(explanations[0]), bool(explanations[1])  # an empty prompt fails
        (['a', 'b'], True, False)
        >>> print(explanations.errors[1])
        InvalidInputError: The prompt is empty: ...
    """

    def __init__(self, folder: str | os.PathLike[str]):
        manifest = read_manifest(Path(folder), FORMAT, _Manifest)
        if manifest is None:
            raise FileNotFoundError(f"There is no manifest in {str(folder)!r}: no job was started there.")
        self.manifest = manifest
        with reading(Path(folder) / MANIFEST):
            self._config = stored_config(manifest["explain_config"])
        self._shards = functools.lru_cache(_OPEN_SHARDS)(Shard)
        self._paths: dict[int, Path] = {}
        self.errors: dict[int, str] = {}
        ids: dict[int, Any] = {}
        self._are_several = False
        for path in shard_paths(Path(folder)):
            for index, record in Shard(path).prompts.items():
                if index in self._paths:
                    raise InvalidInputError(f"Prompt {index} is in {path.name!r} and in {self._paths[index].name!r}.")
                self._paths[index], ids[index] = path, record["id"]
                self._are_several |= len(record["prompt_lengths"]) > 1
                if record["error"] is not None:
                    self.errors[index] = record["error"]
        if foreign := [index for index in self._paths if index >= len(self)]:
            raise InvalidInputError(
                f"{str(self._paths[foreign[0]])!r} has prompt {foreign[0]}, but the job has {len(self)}. Delete the file and "
                "run the job again."
            )
        if len(self._paths) < len(self):
            raise InvalidInputError(
                f"The job in {str(folder)!r} is not finished: {len(self._paths)} of {len(self)} prompts are done. Run it again "
                "with the same arguments to continue it."
            )
        self.errors = dict(sorted(self.errors.items()))
        self.ids: list[Any] = [ids[index] for index in range(len(self))]

    def __len__(self) -> int:
        return int(self.manifest["num_prompts"])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        explanations = self._shards(self._paths[index]).explanations(index, explain_config=self._config)
        if not explanations:
            return FailedPrompt(index, self.ids[index], self.errors[index])
        return explanations if self._are_several else explanations[0]

    def __iter__(self) -> Iterator[Explanation | list[Explanation] | FailedPrompt]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"DatasetExplanations({len(self)} prompts, {len(self.errors)} failed, model={self.manifest['model']['name']!r})"


def load_dataset_explanations(output_dir: str | os.PathLike[str]) -> DatasetExplanations:
    """What `explain_dataset` wrote to a folder. Needs neither the model nor its tokenizer.

    Raises:
        FileNotFoundError: There is no such folder, or no job was started in it.
        InvalidInputError: The folder is damaged, or the job is not finished.

    Examples:
        >>> _ = explain_dataset(model, ["The capital of Italy is"], "explained", tokenizer=tokenizer, max_new_tokens=2)
        >>> for explanation in load_dataset_explanations("explained"):
        ...     if explanation:  # else the prompt failed, and `explanation.error` says why
        ...         print(explanation)
        Explanation(2 generated tokens from 5, ...)
    """
    return DatasetExplanations(output_dir)
