"""Many prompts: `explain_dataset`, in one process or in several.

The prompts are sorted by their number of tokens and cut into batches; several batches make a shard. All of this follows from
the input alone. So a shard holds the same whichever process computes it, and when. Each process computes its share of the
missing shards and writes each to a file of its own, which appears as a whole or not at all. Another thread writes, while the
next shard is computed. If a job is stopped, even killed, each process loses at most the shard that it was working on and the
one that it was writing. The job continues there when it is started again.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..architecture.facts import explained_layers, look_at
from ..architecture.support import without_wrapper
from ..checks.arguments import choice, whole_number
from ..checks.renamed import renamed
from ..configuration import GradELLMConfig
from ..errors import InvalidInputError
from ..jobs.beside import Beside
from ..jobs.manifest import describe_job
from ..jobs.prompts import PromptReader
from ..jobs.run import job_folder, shared_out
from ..model import GradELLM
from ..results.kept import Keep, checked_keep
from ..results.stored import DTYPES
from ..text.encoding import text_tokenizer
from .attempts import Attempts
from .batches import SortedPrompts, checked_sizes
from .explanations import FORMAT, DatasetExplanations, load_dataset_explanations
from .shards import SHARDS, NewShard, Result, Shard, shard_path

# Chosen by hand. A job of any size has about 64 shards, so that several processes have like shares, and a stopped one loses
# little; but a shard has at most 32 batches, whose explanations are in memory until it is written.
_MOST_SHARDS, _BATCHES_PER_SHARD = 64, 32


@renamed(dtype="score_dtype")
def explain_dataset(
    model: Any,
    prompts: Any,
    output_dir: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    explain_config: GradELLMConfig | None = None,
    column: str | None = None,
    batch_size: int = 8,
    batch_tokens: int | None = None,
    shard_size: int | None = None,
    seed: int = 0,
    keep: Keep | None = None,
    score_dtype: str = "float32",
    **generate_kwargs: Any,
) -> DatasetExplanations:
    """Explains what a model writes after each of many prompts, into a folder. The same call continues a job that was stopped.

    If `accelerate launch` or `torchrun` started several processes, each explains its share, with the model on its own device.
    The results do not depend on the number of processes or on interruptions. With another batch size, or if a batch did not
    fit into memory and was halved, scores may differ in their last bits, and sampled texts are different.

    A prompt that cannot be explained is recorded with its error (see `DatasetExplanations.errors`), and the job goes on. The
    same call tries prompts again whose error may pass, such as a lack of memory.

    Args:
        model: As for `explain_generate`; or a `GradELLM`, which has its tokenizer and configuration.
        prompts: A `.jsonl` or `.parquet` file, a folder of `Dataset.save_to_disk`, a `datasets.Dataset`, or any iterable.
            A record is a text, a chat (a list of messages), or a mapping with one of these under `prompt`, `messages` or
            `chat`, and possibly an `id`.
        output_dir: The folder to write to, or to continue. It is made if it is missing.
        tokenizer: The model's.
        explain_config: What to explain and how.
        column: The field of a record with the prompt.
        batch_size: Number of prompts that are explained together, of similar length.
        batch_tokens: At most so many prompt tokens together, padding included: long prompts get smaller batches. A single
            prompt may have more. None: any number.
        shard_size: Prompts per file, rounded up to whole batches. None: a 64th of the prompts, 32 batches at most.
        seed: Of sampling. A batch is sampled from this seed and its place in the job.
        keep: `"top"` or a number: only the strongest scores are stored, as `Explanation.compact` has them, and the others as
            sums. None: all.
        score_dtype: `"float32"`; or `"float16"`: half the size, right to half a thousandth.
        **generate_kwargs: For `model.generate`: `max_new_tokens`, `do_sample`, ...; `steps`, to explain only these; and for the
            template of chats: `tools`, `documents`, `chat_template`, `continue_final_message`, `enable_thinking`.

    Returns:
        The explanations, in the order of the prompts; as `load_dataset_explanations(output_dir)`.

    Raises:
        InvalidInputError: An argument is not usable; the folder holds another job (the message says what differs), or another
            job is writing to it; or no prompt can be explained with these arguments.
        UnsupportedArchitectureError: The model cannot be explained exactly.

    Examples:
        >>> prompts = ["The capital of Italy is", "The capital of France is"]
        >>> explanations = explain_dataset(model, prompts, "explained", tokenizer=tokenizer, max_new_tokens=4)
        >>> explanations[1].attributions.shape  # [N, S]
        torch.Size([4, 9])
    """
    if not isinstance(model, GradELLM):
        model = GradELLM(model)
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    inner, config = without_wrapper(model, explain_config)
    _check_arguments(tokenizer, shard_size, seed, score_dtype)
    keep = checked_keep(keep)
    batch_size, batch_tokens = checked_sizes(batch_size, batch_tokens)
    seed = int(seed)
    explainer = GradELLM(inner, tokenizer, config)
    explained_layers(look_at(inner), config)
    ordered = SortedPrompts(tokenizer, PromptReader(prompts, column), batch_size, batch_tokens, generate_kwargs)
    ordered.check_readable()
    if shard_size is None:
        shard_size = min(-(-len(ordered) // _MOST_SHARDS), _BATCHES_PER_SHARD * batch_size)
    shard_size = -(-int(shard_size) // batch_size) * batch_size
    options = {
        "explain_config": config.to_dict(),
        "batch_size": batch_size,
        "shard_size": shard_size,
        "seed": seed,
        "dtype": score_dtype,  # as folders of the first release have it
        # These two they do not have.
        **({} if keep is None else {"keep": keep}),
        **({} if batch_tokens is None else {"batch_tokens": batch_tokens}),
    }
    job = describe_job(FORMAT, inner, tokenizer, generate_kwargs, ordered.fingerprint, len(ordered), **options)
    _write_missing_shards(ordered, Attempts(explainer, generate_kwargs), job, Path(output_dir))
    return load_dataset_explanations(output_dir)


def _write_missing_shards(prompts: SortedPrompts, attempts: Attempts, job: dict[str, Any], folder: Path) -> None:
    size = job["shard_size"]
    shards = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
    with job_folder(folder, job, SHARDS) as state:
        to_do = {number: count for number, places in enumerate(shards) if (count := _to_do(prompts, places, folder, number))}
        with shared_out(to_do, state, "Explaining") as (share, progress), Beside() as beside:
            for number in share:
                path, shard = shard_path(folder, number), NewShard(DTYPES[job["dtype"]], job.get("keep"))
                for result in _results(prompts, attempts, str(job["seed"]), shards[number], path, progress):
                    beside.do(shard.add, result)
                beside.do(shard.write, path)


def _to_do(prompts: SortedPrompts, places: range, folder: Path, number: int) -> int:
    """How many of these prompts are to be explained, for the first time or again."""
    path = shard_path(folder, number)
    if not path.exists():
        return len(places)
    shard, expected = Shard(path), {prompts.index(place) for place in places}
    if shard.prompts.keys() != expected:
        raise InvalidInputError(f"{str(path)!r} holds other prompts than this job has there. Delete it and run the job again.")
    return sum(shard.is_worth_another_try(index) for index in expected)


def _results(
    prompts: SortedPrompts, attempts: Attempts, seed: str, places: range, path: Path, progress: Any
) -> Iterator[Result]:
    """The results of these prompts: those in the file, if there is one; failures that may pass are tried again."""
    shard = Shard(path) if path.exists() else None
    for batch in prompts.batches(places) if shard is None else (range(place, place + 1) for place in places):
        if shard is not None and not shard.is_worth_another_try(prompts.index(batch.start)):
            yield shard.result(prompts.index(batch.start))
        else:
            yield from attempts.explain(prompts, batch, seed)
            progress.update(len(batch))


def _check_arguments(tokenizer: Any, shard_size: Any, seed: Any, score_dtype: Any) -> None:
    text_tokenizer(tokenizer)
    choice("score_dtype", score_dtype, list(DTYPES))
    whole_number("seed", seed)
    if shard_size is not None:
        whole_number("shard_size", shard_size, 1, none="chosen from the number of prompts")
