"""What `evaluate` wrote."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks.files import reading
from ..checks.schema import check, known_fields
from ..errors import InvalidInputError
from ..jobs.manifest import MANIFEST, Manifest, read_manifest
from .measures import METRICS, Settings
from .records import read_records

FORMAT = "gradellm_hf.evaluation"


class _Manifest(Manifest):
    methods: list[str]
    metrics: list[str]
    settings: dict[str, Any]


class Evaluation:
    """The results of a job that is finished or still running.

    Attributes:
        manifest: How they were made.
        records: Of each prompt that is done, by its position.
        methods, metrics: Names.
        tasks: Names, in the order of the prompts.
        settings: How it was measured.

    Raises:
        FileNotFoundError: There is no such folder, or no job was started in it.
        InvalidInputError: The folder holds something else, or is damaged.

    Examples:
        >>> prompts, options = ["The capital of Italy is"], {"methods": ["grad_ellm"], "metrics": ["deletion"]}
        >>> evaluation = evaluate(GradELLM(model, tokenizer), prompts, "evaluated", **options)
        >>> evaluation
        Evaluation(1 of 1 prompts, 1 methods, 1 metrics)
        >>> evaluation.values("deletion").shape  # [M, R]
        torch.Size([1, 1])
    """

    def __init__(self, folder: str | os.PathLike[str]):
        folder = Path(folder)
        manifest = read_manifest(folder, FORMAT, _Manifest)
        if manifest is None:
            raise FileNotFoundError(f"There is no manifest in {str(folder)!r}: no job was started there.")
        self.manifest = manifest
        self.methods: list[str] = manifest["methods"]
        self.metrics: list[str] = manifest["metrics"]
        with reading(folder / MANIFEST):
            if unknown := [name for name in self.metrics if name not in METRICS]:
                raise InvalidInputError(f"this release does not know the metrics {unknown}. Upgrade gradellm-hf.")
            settings: dict[str, Any] = known_fields(manifest["settings"], Settings)
            check(settings, Settings, "`settings`")
            if "pis" in settings:
                settings["pis"] = tuple(settings["pis"])
            self.settings = Settings(**settings)
        self.records: dict[int, dict[str, Any]] = read_records(folder)
        with reading(folder):
            for index, record in self.records.items():
                self._check_values(index, record)
        self.tasks = list(dict.fromkeys(record["task"] for record in self.records.values()))

    def _check_values(self, index: int, record: dict[str, Any]) -> None:
        """Raises InvalidInputError if a record is not of this job."""
        if index >= self.num_prompts:
            raise InvalidInputError(f"a record is of prompt {index}, but there are {self.num_prompts}.")
        for metric, by_method in record.get("values", {}).items():
            length = len(self.settings.pis) if metric in METRICS and METRICS[metric].is_curve else None
            for method, value in by_method.items():
                if (len(value) if isinstance(value, list) else None) != length:
                    expected = "a number" if length is None else f"{length} numbers"
                    raise InvalidInputError(f"prompt {index}: `{metric}` of `{method}` must be {expected}, got {value!r}.")

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_prompts(self) -> int:
        """Number of prompts of the job."""
        return int(self.manifest["num_prompts"])

    @property
    def errors(self) -> dict[int, str]:
        """Class and message of what went wrong, by the position of the prompts that failed."""
        return {index: record["error"] for index, record in self.records.items() if "error" in record}

    def method_errors(self, method: str) -> list[str]:
        """Messages of the prompts on which a method failed."""
        return [record["errors"][method] for record in self.records.values() if method in record.get("errors", {})]

    def metric_errors(self, metric: str) -> list[str]:
        """Messages of the prompts on which a metric failed."""
        by_prompt = [record.get("metric_errors", {}) for record in self.records.values()]
        return [errors[metric] for errors in by_prompt if metric in errors]

    def values(self, metric: str, task: str | None = None) -> Tensor:
        """A metric of all methods on the prompts of a task (None: all): `[M, R]`, or `[M, R, K]` of a curve; NaN if undefined.

        Raises:
            InvalidInputError: The metric was not measured.
        """
        if metric not in self.metrics:
            raise InvalidInputError(f"{metric!r} was not measured; there are {self.metrics}.")
        undefined: Any = [None] * len(self.settings.pis) if METRICS[metric].is_curve else None
        rows = [
            [record["values"].get(metric, {}).get(method, undefined) for method in self.methods] for record in self.done(task)
        ]
        shape = (len(rows), len(self.methods), *([len(undefined)] if undefined else []))
        return torch.tensor(_nan_for_none(rows), dtype=torch.float64).reshape(shape).transpose(0, 1)

    def seconds(self, method: str, task: str | None = None) -> Tensor:
        """Seconds that explaining took per explained token, of each prompt on which the method did not fail, `[R]`."""
        records = [record for record in self.done(task) if method in record["seconds"]]
        return torch.tensor([r["seconds"][method] / r["num_tokens"] for r in records], dtype=torch.float64)

    def relative_seconds(self, method: str, task: str | None = None) -> Tensor:
        """The time of explaining over that of `generate`, of each prompt whose continuation the model wrote, `[R]`."""
        records = [record for record in self.done(task) if method in record["seconds"] and record["generate_seconds"]]
        return torch.tensor([r["seconds"][method] / r["generate_seconds"] for r in records], dtype=torch.float64)

    def done(self, task: str | None = None) -> list[dict[str, Any]]:
        """Records of the prompts of a task (None: all) that did not fail."""
        return [r for r in self.records.values() if "error" not in r and (task is None or r["task"] == task)]

    def __repr__(self) -> str:
        return (
            f"Evaluation({len(self)} of {self.num_prompts} prompts, {len(self.methods)} methods, {len(self.metrics)} metrics)"
        )


def load_evaluation(folder: str | os.PathLike[str]) -> Evaluation:
    """The results in a folder that `evaluate` wrote to, finished or not.

    Raises:
        FileNotFoundError: There is no such folder, or no job was started in it.
        InvalidInputError: The folder holds something else, or is damaged.

    Examples:
        >>> prompts = ["The capital of Italy is"]
        >>> _ = evaluate(GradELLM(model, tokenizer), prompts, "evaluated", methods=["grad_ellm"], metrics=["deletion"])
        >>> load_evaluation("evaluated")
        Evaluation(1 of 1 prompts, 1 methods, 1 metrics)
    """
    return Evaluation(folder)


def merge(evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """Several evaluations as one. Each becomes the task by whose name it is given.

    Args:
        evaluations: Evaluations by the names of their tasks.

    Raises:
        InvalidInputError: There is none, or they do not have the same methods, metrics and shares.

    Examples:
        >>> options = {"methods": ["grad_ellm"], "metrics": ["deletion"]}
        >>> italy = evaluate(GradELLM(model, tokenizer), ["The capital of Italy is"], "italy", **options)
        >>> france = evaluate(GradELLM(model, tokenizer), ["The capital of France is"], "france", **options)
        >>> merge({"italy": italy, "france": france}).tasks
        ['italy', 'france']
    """
    if not isinstance(evaluations, Mapping) or not evaluations:
        raise InvalidInputError(
            f"`evaluations` must be evaluations by the name of their task, at least one; got {evaluations!r}."
        )
    check(dict(evaluations), dict[str, Evaluation], "`evaluations`")
    check(list(evaluations), list[str], "the names in `evaluations`")
    first, *others = evaluations.values()
    for other in others:
        if (other.methods, other.metrics, other.settings.pis) != (first.methods, first.metrics, first.settings.pis):
            raise InvalidInputError("Only evaluations with the same methods, metrics and shares can be merged.")
    merged = copy.copy(first)
    merged.tasks = list(evaluations)
    records = [{**record, "task": task} for task, part in evaluations.items() for record in part.records.values()]
    merged.records = dict(enumerate(records))
    merged.manifest = {**first.manifest, "num_prompts": sum(part.num_prompts for part in evaluations.values())}
    return merged


def _nan_for_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_nan_for_none(x) for x in value]
    return float("nan") if value is None else value
