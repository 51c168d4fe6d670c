"""A long text that is given: 5,000 tokens after a prompt of 10, a model of Qwen3-8B's shape, a heatmap for every token."""

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Qwen3Config

from gradellm_hf import explain_sequences

from ..measuring import median_and_range
from .models import NO_SPECIAL_TOKENS, QWEN3_8B, TINY, random_ids, random_model
from .report import Row, with_target
from .setting import Setting, gib

TITLE = "`explain_sequences`, Qwen3-8B's shape, bfloat16"
TARGET = 1.5  # seconds, on an H100
_REPETITIONS = 5


def rows(setting: Setting) -> Iterator[Row]:
    config = Qwen3Config(**setting.pick(QWEN3_8B, TINY), **NO_SPECIAL_TOKENS)
    model = random_model(config, setting.device, torch.bfloat16)
    num_steps = setting.pick(5000, 100)
    what = f"P=10, {num_steps} given tokens, all layers, a row for every token"
    yield setting.attempt(what, _row, model, 10, num_steps)


def _row(setting: Setting, what: str, model: Any, prompt_length: int, num_steps: int) -> Row:
    text = random_ids(model.config, prompt_length + num_steps, setting.device)

    def read() -> Any:
        with torch.no_grad():
            return model(text, use_cache=True, logits_to_keep=1)

    def explain() -> Any:
        return explain_sequences(model, text, prompt_length)

    explained_rows = int((explain().attributions.sum(-1) > 0).sum())  # the first call also checks the model
    if explained_rows != num_steps:
        raise AssertionError(f"{explained_rows} of {num_steps} tokens have a heatmap")
    read()
    memory, memory_read = setting.peak_memory(explain), setting.peak_memory(read)
    pairs = setting.pairs(read, explain, _REPETITIONS)
    seconds = statistics.median(second for _, second in pairs)
    seconds_read = statistics.median(first for first, _ in pairs)
    return with_target(
        what,
        f"{median_and_range([second for _, second in pairs])} s, {gib(memory)} "
        f"(reading the text once, without gradients: {seconds_read:.3f} s, {gib(memory_read)})",
        f"<= {TARGET} s on an H100",
        seconds <= TARGET,
        seconds=seconds,
        read_seconds=seconds_read,
        memory=memory,
        rows=explained_rows,
    )
