"""`python -m benchmarks.dataset`: throughput of `explain_dataset` against a plain generation loop over the same batches."""

import random
import tempfile

from gradellm_hf.dataset import explain_dataset
from gradellm_hf.demo_model import load_smollm2

from .measuring import timed

_TEXT = "the old king of a small land by the sea went out one day to find what his people had lost in winter and came home"


def dataset_row(num_prompts: int = 48, batch_size: int = 8, num_steps: int = 32) -> tuple[str, str, str]:
    """A row of the results: what was measured, the figure, the target.

    Both see the same prompts in the same batches; the loop sorts, pads and generates, and decodes what was written.
    `explain_dataset` also reads all prompts once before, explains, and writes everything to disk.
    """
    model, tokenizer = load_smollm2()
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(_TEXT.split(), k=draw.randint(20, 200))) for _ in range(num_prompts)]
    options = {"max_new_tokens": num_steps, "min_new_tokens": num_steps, "do_sample": False}

    def generate() -> None:
        lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        order = sorted(range(num_prompts), key=lambda index: -lengths[index])
        for start in range(0, num_prompts, batch_size):
            batch = [prompts[index] for index in order[start : start + batch_size]]
            inputs = tokenizer(batch, return_tensors="pt", padding=True)
            tokenizer.batch_decode(model.generate(**inputs, **options))

    def explain() -> None:
        with tempfile.TemporaryDirectory() as folder:
            explain_dataset(model, prompts, folder, tokenizer=tokenizer, batch_size=batch_size, **options)

    with tempfile.TemporaryDirectory() as folder:  # warms up
        explain_dataset(model, prompts[:2], folder, tokenizer=tokenizer, **options)
    plain, explained = timed(generate), timed(explain)
    return (
        f"`explain_dataset` / a loop of `generate`, {num_prompts} prompts of 20 to 200 words, batches of {batch_size}, "
        f"N={num_steps}, all layers",
        f"{explained / plain:.3f} ({num_prompts / explained:.2f} against {num_prompts / plain:.2f} prompts per second)",
        "",
    )


if __name__ == "__main__":
    what, measured, _ = dataset_row()
    print(f"{what}: {measured}")
