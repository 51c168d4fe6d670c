"""Runs methods and metrics on prompts, into a folder. The same call continues a job that was stopped."""

import inspect
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..architecture.support import unwrap
from ..checks.arguments import whole_number
from ..checks.schema import check
from ..engines.memory import is_device_lost, is_out_of_memory, release_memory
from ..errors import InvalidInputError, may_pass
from ..jobs.manifest import describe_job, fingerprint
from ..jobs.prompts import Prompt, PromptReader
from ..jobs.run import job_folder, shared_out
from ..methods import Method, get_method, method_names
from ..methods.registry import check_method
from ..model import GradELLM
from ..text.encoding import text_tokenizer
from .measures import METRICS, Measure, Settings
from .records import RECORDS, append_record, drop_partial_records, read_records
from .results import FORMAT, Evaluation, load_evaluation
from .texts import FIELDS, EvaluatedText, read_text


def evaluate(
    model: Any,
    prompts: Any,
    output_dir: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    methods: Sequence[str] | Mapping[str, Method] | None = None,
    metrics: Sequence[str] | None = None,
    settings: Settings | None = None,
    column: str | None = None,
    where: Mapping[str, Any] | None = None,
    max_prompts: int | None = None,
    **generate_kwargs: Any,
) -> Evaluation:
    """Explains each prompt's continuation with every method, and measures every explanation with every metric.

    Results are written prompt by prompt, and the same call continues a job that was stopped. If `accelerate launch` or
    `torchrun` started several processes, each takes a share of the prompts. A prompt or a method that fails is recorded with
    its error, and the job goes on. A prompt whose error may pass, such as a lack of memory, is tried again when the job is
    continued. How long each method takes is recorded too, after a first run that does not count.

    Args:
        model: As for `explain_sequences`; or a `GradELLM`, which has its tokenizer.
        prompts: As for `explain_dataset`. Besides its prompt and `id`, a record may have `task`, the group it is reported in;
            `target`, the continuation to explain instead of what the model writes; `rationale`, a list of `[start, end]`,
            the characters that a person marked in the prompt or in a chat's last message; and `sources`, a list likewise,
            each the place of a source. Without it the sources are the sentences.
        output_dir: The folder to write to, or to continue.
        tokenizer: The model's.
        methods: Names (see `gradellm_hf.methods.method_names`), or methods by name. None: all that are registered.
        metrics: Names out of `METRICS`. None: all.
        settings: How it is measured.
        column: The field of a record with the prompt.
        where: Only records whose fields have these values, such as `{"split": "report"}`.
        max_prompts: Only the first so many.
        **generate_kwargs: For `model.generate`. By default it writes one token, the most likely one.

    Raises:
        InvalidInputError: An argument is not usable; or the folder holds another job, or another job is writing to it.

    Examples:
        >>> evaluation = evaluate(
        ...     GradELLM(model, tokenizer),
        ...     ["The capital of Italy is", "The capital of France is"],
        ...     "evaluated",
        ...     methods=["grad_ellm", "random"],
        ...     metrics=["deletion", "rank_correlation"],
        ... )
        >>> evaluation.values("deletion").shape  # methods, prompts
        torch.Size([2, 2])
    """
    if not isinstance(model, GradELLM):
        model = GradELLM(model)
    explainer = GradELLM(model.model, model.tokenizer if tokenizer is None else tokenizer)
    settings = Settings() if settings is None else settings
    if not isinstance(settings, Settings):
        raise InvalidInputError(f"`settings` must be a Settings, got {settings!r}.")
    text_tokenizer(explainer.tokenizer)
    where = {} if where is None else where
    if not isinstance(where, Mapping):
        raise InvalidInputError(f"`where` must be a dict of fields and their values, got {where!r}.")
    by_name, metrics, chosen = plan(prompts, methods, metrics, column, where, max_prompts)
    generate_kwargs = {"max_new_tokens": 1, "do_sample": False, **generate_kwargs}
    job = describe_job(
        FORMAT,
        model.model,
        explainer.tokenizer,
        generate_kwargs,
        fingerprint(chosen),
        len(chosen),
        methods=list(by_name),
        metrics=metrics,
        settings=settings.described(),
    )
    _Run(explainer, by_name, metrics, settings, generate_kwargs).into(Path(output_dir), job, chosen)
    return load_evaluation(output_dir)


def plan(
    prompts: Any,
    methods: Sequence[str] | Mapping[str, Method] | None,
    metrics: Sequence[str] | None,
    column: str | None,
    where: Mapping[str, Any],
    max_prompts: int | None,
) -> tuple[Mapping[str, Method], list[str], list[Prompt]]:
    """Methods by name, names of metrics, and the prompts: all that needs no model. Arguments and errors as for `evaluate`."""
    by_name = _methods(methods)
    metrics = _known("metrics", METRICS if metrics is None else metrics, METRICS)
    reader = PromptReader(prompts, column, (*FIELDS, *where))
    return by_name, metrics, _chosen(reader, where, max_prompts)


class _Run:
    def __init__(
        self,
        explainer: GradELLM,
        methods: Mapping[str, Method],
        metrics: Sequence[str],
        settings: Settings,
        generate_kwargs: dict[str, Any],
    ):
        self._explainer, self._methods, self._metrics = explainer, methods, metrics
        self._settings, self._generate_kwargs = settings, generate_kwargs

    def into(self, folder: Path, job: dict[str, Any], prompts: list[Prompt]) -> None:
        with job_folder(folder, job, RECORDS) as state:
            if state.is_main_process:
                drop_partial_records(folder)
            state.wait_for_everyone()
            done = {index for index, r in read_records(folder).items() if "error" not in r or not may_pass(r["error"])}
            missing = {index: 1 for index in range(len(prompts)) if index not in done}
            with shared_out(missing, state, "Evaluating") as (share, progress):
                for index in share:
                    record = self._record(index, prompts[index], is_first=index == share[0])
                    append_record(folder, state.process_index, record)
                    progress.update()

    def _record(self, index: int, prompt: Prompt, is_first: bool) -> dict[str, Any]:
        record: dict[str, Any] = {"index": index, "id": prompt.id, "task": str(prompt.fields.get("task", ""))}
        try:
            text = read_text(self._explainer, prompt, self._settings.perturb_special_tokens, self._generate_kwargs)
            if is_first:
                self._explain(index, text)  # warms up: the next run is timed
                if text.seconds is not None:
                    text = read_text(self._explainer, prompt, self._settings.perturb_special_tokens, self._generate_kwargs)
            heatmaps, seconds, errors = self._explain(index, text)
            num_tokens = text.sequences.shape[1] - text.prompt_length
            values, metric_errors = self._measure(index, text, heatmaps)
            return {
                **record,
                "prompt_length": text.prompt_length,
                "num_tokens": num_tokens,
                "continuation": text.continuation,
                "generate_seconds": text.seconds,
                "seconds": seconds,
                "errors": errors,
                "metric_errors": metric_errors,
                "values": values,
            }
        except Exception as error:
            if is_device_lost(error):
                raise
            return {**record, "error": _described(error)}

    def _explain(self, index: int, text: EvaluatedText) -> tuple[dict[str, Tensor], dict[str, float], dict[str, str]]:
        """Heatmaps `[1, N, S]`, the seconds they took, and what went wrong, by method."""
        heatmaps, seconds, errors = {}, {}, {}
        length = text.sequences.shape[1]
        shape = (1, length - text.prompt_length, length)
        for name, method in self._methods.items():
            start = time.perf_counter()
            try:
                heatmaps[name] = _checked(self._run(method, index, text), shape)
                seconds[name] = time.perf_counter() - start
            except Exception as error:
                if is_device_lost(error):
                    raise
                errors[name] = _described(error)
        return heatmaps, seconds, errors

    def _run(self, method: Method, index: int, text: EvaluatedText) -> Any:
        known = {"generator": self._settings.generator(index), "sources": text.sources}
        names = inspect.signature(method).parameters  # of a method that draws random numbers, or explains by source
        run = partial(method, **{name: value for name, value in known.items() if name in names})
        return run(self._explainer.model, text.sequences, text.prompt_length, text.attention_mask)

    def _measure(
        self, index: int, text: EvaluatedText, heatmaps: dict[str, Tensor]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Values by metric and method, and what went wrong, by metric."""
        values: dict[str, dict[str, Any]] = {}
        errors: dict[str, str] = {}
        together: dict[Measure, Tensor] = {}  # of metrics that are measured together
        for name in self._metrics if heatmaps else ():
            metric = METRICS[name]
            if metric.needs_rationale and text.rationale is None:
                continue
            generator, stacked = self._settings.generator(index), torch.stack(list(heatmaps.values()))
            try:
                result = together.get(metric.measure)
                if result is None:
                    result = metric.measure(unwrap(self._explainer.model), text, stacked, self._settings, generator)
                if metric.part is not None:
                    together[metric.measure] = result
                    result = result[..., metric.part]
                values[name] = dict(zip(heatmaps, result.tolist()))
            except Exception as error:
                if is_device_lost(error):
                    raise
                errors[name] = _described(error)
        return values, errors


def _checked(heatmap: Any, shape: tuple[int, ...]) -> Tensor:
    """What a method returned, on the CPU: so the device has finished. InvalidInputError if it is no heatmap of this text."""
    if not isinstance(heatmap, Tensor) or heatmap.is_complex() or heatmap.shape != shape:
        found = list(heatmap.shape) if isinstance(heatmap, Tensor) else type(heatmap).__name__
        raise InvalidInputError(f"A method must give a tensor of scores of shape {list(shape)}, [1, N, S]; got {found}.")
    scores: Tensor = heatmap.detach().to("cpu", torch.float32)
    if not scores.isfinite().all():
        raise InvalidInputError("The scores are not all finite.")
    return scores


def _described(error: Exception) -> str:
    if is_out_of_memory(error):
        release_memory()
    return f"{type(error).__name__}: {error}"


def _methods(methods: Sequence[str] | Mapping[str, Method] | None) -> Mapping[str, Method]:
    if isinstance(methods, Mapping):
        if not methods:
            raise InvalidInputError("`methods` is empty: name at least one.")
        check(list(methods), list[str], "the names in `methods`")
        for name, method in methods.items():
            check_method(f"methods[{name!r}]", method)
        return methods
    known = method_names()
    return {name: get_method(name) for name in _known("methods", known if methods is None else methods, known)}


def _known(what: str, names: Any, known: Iterable[str]) -> list[str]:
    known = list(known)
    is_list = isinstance(names, Iterable) and not isinstance(names, str)
    chosen = list(names) if is_list else [names]
    if not chosen or any(name not in known for name in chosen) or len(set(chosen)) < len(chosen):
        raise InvalidInputError(f"`{what}` must be different names out of {known}, at least one; got {chosen}.")
    return chosen


def _chosen(reader: PromptReader, where: Mapping[str, Any], max_prompts: int | None) -> list[Prompt]:
    if max_prompts is not None:
        max_prompts = whole_number("max_prompts", max_prompts, 1, none="all")
    prompts = (reader[index] for index in range(len(reader)))
    chosen = [p for p in prompts if all(p.fields.get(name) == value for name, value in where.items())][:max_prompts]
    if not chosen:
        raise InvalidInputError(f"No record has {dict(where)}.")
    return chosen
