"""`python -m gradellm_hf.demo`: asks a small real model a question and shows what each token of its answer rests on."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .configuration import GradELLMConfig
from .demo_model import load_smollm2
from .generation import explain_generate

CONTEXT = (
    "Marta keeps the lighthouse on the island of Tarn. Every morning she takes her red boat to the harbour and buys fresh "
    "bread for her dog Biscuit."
)
QUESTION = "What does Marta buy at the harbour?"
_MAX_NEW_TOKENS = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """The demo by itself, as `gradellm demo`."""
    from .cli.command_line import main as command_line

    return command_line(["demo", *(sys.argv[1:] if arguments is None else arguments)])


def run(folder: Path, color: bool) -> None:
    """Asks, explains, and writes the results to a folder; `color` also where the output is no terminal."""
    logging.disable_progress_bar()
    print("Loading SmolLM2-135M-Instruct (the first time, its weights are unpacked: half a minute) ...", flush=True)
    model, tokenizer = load_smollm2()
    chat = [{"role": "user", "content": f"{CONTEXT}\n\n{QUESTION}"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generate_kwargs = {**inputs, "max_new_tokens": _MAX_NEW_TOKENS, "do_sample": False}
    config = GradELLMConfig(output_layer_attributions=True)
    explain_generate(model, **{**generate_kwargs, "max_new_tokens": 4})  # warms up, so that the times compare
    start = time.perf_counter()
    generated = model.generate(**generate_kwargs)
    generation_time = time.perf_counter() - start
    start = time.perf_counter()
    out: Any = explain_generate(model, **generate_kwargs, explain_config=config)
    both_time = time.perf_counter() - start

    explanation = out.explanations(tokenizer)[0]
    special_share = (explanation.attributions[:, explanation.special].sum() / explanation.attributions.sum()).item()
    print(f"\nContext:  {CONTEXT}\nQuestion: {QUESTION}")
    print(f"Answer:   {tokenizer.decode(out.sequences[0, out.prompt_length :], skip_special_tokens=True)}\n")
    print("Each generated token, and the earlier tokens that contributed most to it, strongest first.")
    print(f"Special tokens are left out; they hold {special_share:.0%} of the scores.\n")
    color = color or (sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    print(explanation.render(color=color))

    folder.mkdir(parents=True, exist_ok=True)
    tensors, page = folder / "explanation.safetensors", folder / "explanation.html"
    out.save(tensors, tokenizer)
    explanation.to_html(page, title=QUESTION)
    print(f"\nGeneration alone took {generation_time:.2f} s, generation and explanation {both_time:.2f} s.")
    print(f"The token ids are {'the same' if generated.equal(out.sequences) else 'DIFFERENT'}.")
    print(f"Scores:   {tensors}\nReport:   {page} (open it in a browser)")


if __name__ == "__main__":
    sys.exit(main())
