"""`python -m benchmarks.dataset`: throughput of `explain_dataset` against plain loops over the same prompts."""

import random
import tempfile
from collections.abc import Callable
from typing import Any

from gradellm_hf import explain_generate
from gradellm_hf.dataset import explain_dataset
from gradellm_hf.demo_model import load_smollm2

from .measuring import median_and_range, timed

_TEXT = "the old king of a small land by the sea went out one day to find what his people had lost in winter and came home"


def dataset_rows(
    num_prompts: int = 32, batch_size: int = 8, num_steps: int = 32, repetitions: int = 3
) -> list[tuple[str, str, str]]:
    """Rows of the results: what was measured, the figure, the target.

    The loops pad, run and decode what was written: `generate` or `explain_generate`, with the prompts sorted by length, as
    `explain_dataset` has them, or as they come. `explain_dataset` also reads all prompts once before, explains, and writes
    everything to disk.
    """
    model, tokenizer = load_smollm2()
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(_TEXT.split(), k=draw.randint(20, 200))) for _ in range(num_prompts)]
    options: dict[str, Any] = {"max_new_tokens": num_steps, "min_new_tokens": num_steps, "do_sample": False}

    def loop(run: Callable[..., Any], is_sorted: bool) -> None:
        order = list(range(num_prompts))
        if is_sorted:
            lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
            order.sort(key=lambda index: -lengths[index])
        for start in range(0, num_prompts, batch_size):
            batch = [prompts[index] for index in order[start : start + batch_size]]
            inputs = tokenizer(batch, return_tensors="pt", padding=True)
            tokenizer.batch_decode(run(**inputs))

    loops: dict[str, Callable[[], None]] = {
        "`generate`, sorted": lambda: loop(lambda **inputs: model.generate(**inputs, **options), True),
        "`generate`, as they come": lambda: loop(lambda **inputs: model.generate(**inputs, **options), False),
        "`explain_generate`, sorted": lambda: loop(
            lambda **inputs: explain_generate(model, **inputs, **options).sequences, True
        ),
    }

    def explain(prompts: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            explain_dataset(model, prompts, folder, tokenizer=tokenizer, batch_size=batch_size, **options)

    explain(prompts[:2])  # warms up
    ratios: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repetitions):
        explained = timed(lambda: explain(prompts))
        for name, values in ratios.items():
            values.append(explained / timed(loops[name]))
    what = f"{num_prompts} prompts of 20 to 200 words, batches of {batch_size}, N={num_steps}, all layers"
    targets = {"`explain_generate`, sorted": "<= 1.2"}
    return [
        (f"`explain_dataset` / a loop of {name}, {what}", median_and_range(values), targets.get(name, ""))
        for name, values in ratios.items()
    ]


if __name__ == "__main__":
    for what, measured, _ in dataset_rows():
        print(f"{what}: {measured}")
