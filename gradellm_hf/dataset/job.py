"""Many prompts: `explain_dataset` and `python -m gradellm_hf.dataset`, in one process or in several.

The prompts are sorted by their number of tokens and cut into batches; some batches make a shard. All of that follows from
the input alone, so a shard holds the same whoever computes it and when. Each process computes its share of the shards that are
not there yet and writes each to a file of its own, which appears as a whole or not at all: a job that is stopped, however
hard, loses at most the shard that each process was working on, and goes on with that one when it is started again.
"""

import argparse
import contextlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..architecture.support import explained_layers, unwrap
from ..checks.arguments import whole_number
from .batches import SortedPrompts
from ..cli.checks import at_least, check_folder, check_prompts, seed, wrong
from ..cli.model_options import DTYPES, device_map, load_model
from ..cli.result_options import print_errors
from ..configuration import GradELLMConfig
from .explanations import FORMAT, DatasetExplanations, load_dataset_explanations
from ..errors import InvalidInputError
from ..checks.files import remove_partial_files
from ..jobs.manifest import check_same_job, describe_job, read_manifest, write_manifest
from ..model import GradELLM, text_tokenizer
from ..jobs.processes import only_writer, processes
from ..jobs.prompts import PromptReader
from .shards import Result, Shard, shard_path, shard_paths, write_shard

__all__ = ["DatasetExplanations", "explain_dataset", "load_dataset_explanations"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_SHARDS, _BATCHES_PER_SHARD = 64, 32


def explain_dataset(
    model: Any,
    prompts: Any,
    output_dir: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    explain_config: GradELLMConfig | None = None,
    column: str | None = None,
    batch_size: int = 8,
    shard_size: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    **generate_kwargs: Any,
) -> DatasetExplanations:
    """Explains what a model writes after each of many prompts, into a folder; continues where it was stopped.

    In a process that `accelerate launch` or `torchrun` started, each process explains its share, with the model on its own
    device. The results depend neither on the number of processes nor on interruptions. With another batch size, or where a
    batch did not fit in memory and was halved, they may differ in the last bits, and samples are others.

    A prompt that cannot be explained is recorded with its error (see `DatasetExplanations.errors`), and the others go on. The
    same call tries those again that failed for something else than what they are: a lack of memory, say.

    Args:
        model: As for `explain_generate`; or a `GradELLM`, which brings its tokenizer and configuration.
        prompts: A `.jsonl` or `.parquet` file, a folder of `Dataset.save_to_disk`, a `datasets.Dataset`, or any iterable.
            A record is a text, a chat (a list of messages), or a mapping with one of these under `prompt`, `messages` or
            `chat`, and possibly an `id`.
        output_dir: The folder to write to, or to continue. It is made where it is missing.
        tokenizer: The model's.
        explain_config: What to explain and how.
        column: The field of a record with the prompt.
        batch_size: Number of prompts that are explained together, of similar length.
        shard_size: Number of prompts a file; rounded up to whole batches. None: a 64th of the prompts, 32 batches at most.
        seed: Of sampling. A batch is sampled from this seed and its place in the job.
        dtype: `"float32"` or `"float16"`: how the heatmaps are stored.
        **generate_kwargs: For `model.generate`: `max_new_tokens`, `do_sample`, ...

    Returns:
        The explanations, in the order of the prompts; as `load_dataset_explanations(output_dir)`.

    Raises:
        InvalidInputError: An argument is not usable; the folder holds another job, with what differs, or is being written to;
            or no prompt can be explained with these arguments.
        UnsupportedArchitectureError: The model cannot be explained exactly.
    """
    if not isinstance(model, GradELLM):
        model = GradELLM(model)
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    config = model.explain_config if explain_config is None else explain_config
    if config is None:
        config = GradELLMConfig()
    _check_arguments(tokenizer, batch_size, shard_size, seed, dtype)
    batch_size, seed = int(batch_size), int(seed)
    explainer = GradELLM(model.model, tokenizer, config)
    explained_layers(unwrap(model.model), config)
    ordered = SortedPrompts(explainer, PromptReader(prompts, column), batch_size, seed, _DTYPES[dtype], generate_kwargs)
    if shard_size is None:
        shard_size = min(-(-len(ordered) // _SHARDS), _BATCHES_PER_SHARD * batch_size)
    shard_size = -(-int(shard_size) // batch_size) * batch_size
    options = {
        "explain_config": config.to_dict(),
        "batch_size": batch_size,
        "shard_size": shard_size,
        "seed": seed,
        "dtype": dtype,
    }
    job = describe_job(FORMAT, model.model, tokenizer, generate_kwargs, ordered.fingerprint, len(ordered), **options)
    _run(ordered, job, Path(output_dir))
    return load_dataset_explanations(output_dir)


def _run(prompts: SortedPrompts, job: dict[str, Any], folder: Path) -> None:
    state = processes()
    if shard_paths(folder):
        _check_folder(folder, job)
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder) if state.is_main_process else contextlib.nullcontext():
        if state.is_main_process:
            remove_partial_files(folder)
            read_manifest(folder, FORMAT)  # of a job of this kind, if of any
            if not shard_paths(folder):  # a job that came to nothing, for an argument that was wrong, say, is in nobody's way
                write_manifest(folder, job)
        state.wait_for_everyone()
        _check_folder(folder, job)  # now of the main process, which may have been given something else
        _write_missing_shards(prompts, job, folder, state)


def _write_missing_shards(prompts: SortedPrompts, job: dict[str, Any], folder: Path, state: Any) -> None:
    from tqdm.auto import tqdm

    size = job["shard_size"]
    shards = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
    to_do = {number: count for number, places in enumerate(shards) if (count := _to_do(prompts, places, folder, number))}
    state.wait_for_everyone()  # all have seen the same files
    share = list(to_do)[state.process_index :: state.num_processes]
    total = sum(to_do[number] for number in share)
    disable = None if state.is_main_process else True  # None: where it is no terminal
    options: Any = {"total": total, "desc": "Explaining", "unit": "prompt", "disable": disable}
    progress: Any = tqdm(**options)
    with progress:
        for number in share:
            path = shard_path(folder, number)
            write_shard(path, _results(prompts, shards[number], path, progress), _DTYPES[job["dtype"]])
    state.wait_for_everyone()


def _to_do(prompts: SortedPrompts, places: range, folder: Path, number: int) -> int:
    """How many of these prompts are to be explained, also once more."""
    path = shard_path(folder, number)
    if not path.exists():
        return len(places)
    shard, expected = Shard(path), {prompts.index(place) for place in places}
    if shard.prompts.keys() != expected:
        raise InvalidInputError(f"{str(path)!r} holds other prompts than this job has there. Delete it and run the job again.")
    return sum(shard.is_worth_another_try(index) for index in expected)


def _results(prompts: SortedPrompts, places: range, path: Path, progress: Any) -> Iterator[Result]:
    """What becomes of these prompts: what the file holds, where there is one, but for failures that may pass."""
    if not path.exists():
        yield from prompts.explain(places, progress)
        return
    shard = Shard(path)
    for place in places:
        index = prompts.index(place)
        if shard.is_worth_another_try(index):
            yield from prompts.explain(range(place, place + 1), progress)
        else:
            yield shard.result(index)


def _check_arguments(tokenizer: Any, batch_size: Any, shard_size: Any, seed: Any, dtype: Any) -> None:
    text_tokenizer(tokenizer)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise InvalidInputError(f"`dtype` must be one of {sorted(_DTYPES)}, got {dtype!r}.")
    whole_number("seed", seed)
    whole_number("batch_size", batch_size, 1)
    if shard_size is not None:
        whole_number("shard_size", shard_size, 1, none="chosen from the number of prompts")


def _check_folder(folder: Path, job: dict[str, Any]) -> None:
    found = read_manifest(folder, FORMAT)
    if found is not None:
        check_same_job(folder, found, job)
    elif shard_paths(folder):
        raise InvalidInputError(f"{str(folder)!r} holds explanations without a manifest. Write to another folder.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.set_defaults(gguf_file=None)
    parser.add_argument("--model", required=True, help="a folder, or the name of a model on the Hub")
    parser.add_argument("--input", required=True, help="a .jsonl or .parquet file, or a folder of Dataset.save_to_disk")
    parser.add_argument("--output", required=True, help="the folder to write to, or to continue")
    parser.add_argument("--column", help="the field with the prompt (default: prompt, messages or chat)")
    parser.add_argument("--max-new-tokens", type=at_least(1), metavar="N", help="tokens to write a prompt (default: 64)")
    parser.add_argument(
        "--batch-size", type=at_least(1), default=8, metavar="N", help="prompts explained together (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-size", type=at_least(1), metavar="N", help="prompts a file (default: a 64th of them, at most 32 batches)"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of sampling (default: %(default)s)")
    parser.add_argument("--scores", choices=sorted(_DTYPES), default="float32", help="how the heatmaps are stored")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the model (default: as in its files)")
    parser.add_argument(
        "--device-map",
        type=device_map,
        metavar="MAP",
        help="for accelerate, to spread one model over devices; else each process has its own",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    json_object: dict[str, Any] = {"type": _json_object, "default": {}, "metavar": "JSON"}
    parser.add_argument("--generate", help="more options of generate, e.g. '{\"do_sample\": true}'", **json_object)
    parser.add_argument("--config", help="options of GradELLMConfig, e.g. '{\"layers\": 4}'", **json_object)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code, 1 where a prompt could not be explained.

    Raises:
        As `explain_dataset`; and OSError, where the model or the input cannot be read.
    """
    generate_kwargs, config = _generate_kwargs(options), GradELLMConfig.from_dict(options.config)
    folder = Path(options.output)
    check_folder("--output", folder)
    read_manifest(folder, FORMAT)  # of a job of this kind, if of any
    check_prompts(options.input, options.column)
    state = processes()
    options.device_map = options.device_map or {"": state.device}
    explanations = explain_dataset(
        load_model(options, config),
        options.input,
        options.output,
        column=options.column,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        seed=options.seed,
        dtype=options.scores,
        **generate_kwargs,
    )
    if state.is_main_process:
        print_errors(explanations.errors, "explained", explanations.ids)
        done = len(explanations) - len(explanations.errors)
        print(f"{done} of {len(explanations)} prompts explained in {options.output}", file=sys.stderr)
        if explanations.errors:
            print("Run the same command again to try those again that lacked memory or the like.", file=sys.stderr)
    state.destroy_process_group()
    return int(bool(explanations.errors))


def _generate_kwargs(options: argparse.Namespace) -> dict[str, Any]:
    given: dict[str, Any] = options.generate
    if not_for_generate := sorted(given.keys() & inspect.signature(explain_dataset).parameters.keys()):
        raise wrong(f"--generate takes options of `generate`; {not_for_generate} have options of their own")
    if options.max_new_tokens is None:
        return {"max_new_tokens": 64, **given}
    if "max_new_tokens" in given:
        raise wrong("--max-new-tokens and --generate both say `max_new_tokens`; leave one out")
    return {"max_new_tokens": options.max_new_tokens, **given}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"a JSON object is expected, got {text}")
    return value
