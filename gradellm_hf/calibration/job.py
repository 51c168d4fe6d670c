"""`calibrate`: learns how much each head of a model counts."""

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from ..architecture.facts import ModelFacts, explained_layers, look_at
from ..architecture.support import without_wrapper
from ..checks.arguments import whole_number
from ..checks.files import TensorFile, reading, write_tensors
from ..checks.schema import TensorKind, check, check_tensors
from ..configuration import GradELLMConfig, HeadWeights
from ..errors import InvalidInputError, UnsupportedArchitectureError
from ..jobs.manifest import describe_job, fingerprint, weights_fingerprint
from ..jobs.prompts import Prompt, PromptReader
from ..jobs.run import job_folder, shared_out
from ..text.encoding import text_tokenizer
from .features import FEATURES
from .fit import Fitted, learn
from .texts import balanced_order, measure, shipped_prompts

FORMAT, FORMAT_VERSION = "gradellm_hf.calibration", 1
_WRITER = "calibrate"
_TEXTS = "text-*.safetensors"
_NO_KIND = ""
_TENSORS = {
    "effects": TensorKind("NK", (torch.float32,)),
    "sources": TensorKind("K", (torch.int64,)),
    "is_sink": TensorKind("K", (torch.bool,)),
    "before": TensorKind("N", (torch.int64,)),
    **{name: TensorKind("LHNK", (torch.bfloat16,)) for name in FEATURES},
}
_Measured = tuple[dict[str, Tensor], float]  # what was measured of a text, and the processor time in seconds


class _Metadata(TypedDict):
    cpu_seconds: float


def calibrate(
    model: Any,
    tokenizer: Any = None,
    prompts: Any = None,
    *,
    explain_config: GradELLMConfig | None = None,
    seed: int = 0,
    num_prompts: int | None = None,
    num_tokens: int = 12,
    num_sources: int = 12,
    batch_size: int = 3,
    output_dir: str | os.PathLike[str] | None = None,
) -> HeadWeights:
    """Learns how much each head of a model counts, from what changes when tokens are left out. To be done once per model.

    The model continues each prompt. Some tokens, drawn at random, are left out one at a time: their embedding is set to 0. What
    this changes in the distributions of the tokens that the model wrote after them is measured (Hellinger distance). Weights of
    the heads, and what they weight, are chosen such that heatmaps correlate with these changes. They are shrunk to equal
    weights, as far as is best for kinds of text that they were not learned from. Where a text does not begin with a special
    token, its first token is left out, too: much attention rests on it for nothing, which the weights have to learn.

    Source: Cohen-Wang et al. 2025, "Learning to Attribute with Attention" (arXiv 2504.13752), learn weights of heads for plain
    attention.

    Args:
        model: As for `explain_generate`; or a `GradELLM`, which has its tokenizer.
        tokenizer: The model's.
        prompts: As for `explain_dataset`. A record may name its `kind`; else each prompt is its own. None: 386 prompts of eight
            kinds, which come with the package.
        explain_config: What is explained: the target. The rest must be as by default.
        seed: Of the continuations and all draws.
        num_prompts: How many of the prompts to take, in equal parts of each kind. None: all.
        num_tokens: Tokens that the model writes per prompt.
        num_sources: Tokens that are left out per prompt, one at a time.
        batch_size: How many are left out per forward pass. Few save work: what comes before them is not run again.
        output_dir: A folder for what is measured, one file per prompt: the same call continues a calibration that was stopped.
            None: nothing stays.

    Returns:
        The weights. Their `report` says how well heatmaps agreed with leaving tokens out, before and after, in kinds of text
        that were held out; and what it cost.

    Raises:
        InvalidInputError: An argument or the state of the model is not usable, or the folder holds something else.
        UnsupportedArchitectureError: The model cannot be explained exactly, or is spread over processes.

    Examples:
        >>> weights = calibrate(model, tokenizer, ["Rome is old.", "Oslo is in Norway."], num_tokens=3, num_sources=4)
        >>> weights.values.shape  # [L, H]
        torch.Size([5, 6])
        >>> sorted(weights.report["held_out"])
        ['after', 'before']
    """
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    text_tokenizer(tokenizer)
    model, config = without_wrapper(model, explain_config)
    facts = look_at(model)
    _check(facts, config)
    options = {
        "num_tokens": whole_number("num_tokens", num_tokens, 1),
        "num_sources": whole_number("num_sources", num_sources, 2),
    }
    batch_size = whole_number("batch_size", batch_size, 1)
    seed = whole_number("seed", seed, 0, 2**63 - 1)
    reader = shipped_prompts(tokenizer) if prompts is None else PromptReader(prompts, fields=("kind",))
    texts = [reader[index] for index in range(len(reader))]
    kinds = [str(text.fields.get("kind", _NO_KIND)) for text in texts]
    limit = whole_number("num_prompts", len(texts) if num_prompts is None else num_prompts, 2, len(texts), none="all")
    chosen = balanced_order(kinds, seed)[:limit]
    inputs = fingerprint([[kinds[index], texts[index].content] for index in chosen])
    job = describe_job(FORMAT, model, tokenizer, {}, inputs, limit, explain_config=config.to_dict(), seed=seed, options=options)
    with contextlib.ExitStack() as stack:
        if output_dir is None:
            output_dir = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(output_dir)
        state = stack.enter_context(job_folder(folder, job, _TEXTS))
        paths = {index: folder / f"text-{index:05d}.safetensors" for index in chosen}
        missing = {index: 1 for index in chosen if not paths[index].is_file()}
        with shared_out(missing, state, "Calibrating") as (share, progress):
            for index in share:
                _measure(facts, tokenizer, texts[index], config, f"{seed}-{index}", options, batch_size, paths[index])
                progress.update()
        state.wait_for_everyone()
        measured = [_read(paths[index]) for index in chosen]
    fitted = learn([tensors for tensors, _ in measured], _folds([kinds[index] for index in chosen]), facts.input_device)
    return HeadWeights(
        fitted.values,
        fitted.feature,
        facts.model_type,
        weights_fingerprint(facts.model),
        _report(fitted, job, measured),
    )


def _check(facts: ModelFacts, config: GradELLMConfig) -> None:
    wanted = GradELLMConfig(target=config.target, contrast_token_ids=config.contrast_token_ids, engine=config.engine)
    if config != wanted or config.target == "contrast":
        raise InvalidInputError(
            "Head weights are learned for all layers and head outputs, with attention weights and without a contrast: only "
            f"`target` and `engine` of `explain_config` may differ from the default, got {config!r}."
        )
    explained_layers(facts, config)
    if facts.sharing_groups:
        raise UnsupportedArchitectureError(
            "The model is spread over processes, of which each has only some of the heads. Calibrate it in one process "
            '(`device_map="auto"`): the weights hold for the model however it is spread.'
        )


def _measure(
    facts: ModelFacts,
    tokenizer: Any,
    prompt: Prompt,
    config: GradELLMConfig,
    seed: str,
    options: dict[str, int],
    batch_size: int,
    path: Path,
) -> None:
    start = time.process_time()
    tensors = measure(facts, tokenizer, prompt, config, seed, batch_size=batch_size, **options)
    seconds = time.process_time() - start
    write_tensors(path, tensors, {"format": FORMAT, "format_version": FORMAT_VERSION, "cpu_seconds": seconds})


def _read(path: Path) -> _Measured:
    file = TensorFile(path, _WRITER)
    file.check_format(FORMAT, FORMAT_VERSION)
    with reading(path, "Delete the file and run the calibration again."):
        check(file.metadata, _Metadata, "the metadata")
        tensors = file.tensors(_TENSORS)
        check_tensors(tensors, _TENSORS, {})
    return tensors, file.metadata["cpu_seconds"]


def _folds(kinds: list[str]) -> list[str]:
    """What is held out together: a kind of text; if there is only one kind, a fifth of the prompts."""
    return kinds if len(set(kinds)) > 1 else [str(number % 5) for number in range(len(kinds))]


def _report(fitted: Fitted, job: dict[str, Any], measured: list[_Measured]) -> dict[str, Any]:
    return {
        **fitted.report,
        "model": job["model"]["name"],
        "prompts": len(measured),
        "tokens": sum(len(tensors["before"]) for tensors, _ in measured),
        "ablations": sum(len(tensors["sources"]) for tensors, _ in measured),
        "cpu_minutes": round(sum(seconds for _, seconds in measured) / 60, 1),
        "seed": job["seed"],
        "explain_config": job["explain_config"],
        "versions": job["versions"],
    }
