"""What explaining costs on top of generating: a model of Llama 2 7B's shape in bfloat16."""

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from gradellm_hf import explain_generate

from ..measuring import median_and_range
from .models import LLAMA_7B, TINY, llama, random_ids, random_model, writing
from .report import Row, with_target
from .setting import Setting, gib

TITLE = "`explain_generate / generate`, Llama 2 7B's shape, bfloat16"
TARGET = 1.05


def rows(setting: Setting) -> Iterator[Row]:
    model = random_model(llama(setting.pick(LLAMA_7B, TINY)), setting.device, torch.bfloat16)
    for prompt_length, num_steps, repetitions in setting.pick([(1024, 128, 7), (8192, 512, 5)], [(48, 12, 5), (96, 24, 3)]):
        what = f"P={prompt_length}, N={num_steps}, all layers"
        yield setting.attempt(what, _row, model, prompt_length, num_steps, repetitions)


def _row(setting: Setting, what: str, model: Any, prompt_length: int, num_steps: int, repetitions: int) -> Row:
    prompt, length = random_ids(model.config, prompt_length, setting.device), writing(num_steps)

    def generate() -> Any:
        return model.generate(prompt, **length)

    def explain() -> Any:
        return explain_generate(model, prompt, **length)

    explain_generate(model, prompt[:, :32], **writing(4))  # makes the checks that are made once per model
    memory, memory_explained = setting.peak_memory(generate), setting.peak_memory(explain)
    pairs = setting.pairs(generate, explain, repetitions)
    ratios = [explained / generated for generated, explained in pairs]
    ratio = statistics.median(ratios)
    seconds, seconds_explained = (statistics.median(column) for column in zip(*pairs, strict=True))
    return with_target(
        what,
        f"{median_and_range(ratios)}, {len(pairs)} pairs; generate {seconds:.2f} s, {gib(memory)}; "
        f"explain_generate {seconds_explained:.2f} s, {gib(memory_explained)}",
        f"<= {TARGET}",
        ratio <= TARGET,
        ratio=ratio,
        pairs=pairs,
        generate_memory=memory,
        explain_memory=memory_explained,
    )
