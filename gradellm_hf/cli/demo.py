"""`gradellm demo`: asks a small real model a question and shows what its answer rests on."""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from .checks import check_folder

CONTEXT = (
    "Marta keeps the lighthouse on the island of Tarn. Every morning she takes her red boat to the harbour and buys fresh "
    "bread for her dog Biscuit."
)
QUESTION = "What does Marta buy at the harbour?"
_MAX_NEW_TOKENS = 40
#: What Transformers imports if it is there, and what that uses: warn of themselves, not of the demo.
_OTHERS = ("torchao", "torch.utils._pytree")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--color", action="store_true", help="colour the list even if the output is not a terminal")


def run(options: argparse.Namespace) -> int:
    check_folder("--output", options.output)
    _ask_and_explain(options.output, options.color)
    return 0


def _ask_and_explain(folder: Path, color: bool) -> None:
    for name in _OTHERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    from ..configuration import GradELLMConfig
    from ..demo_model import load_smollm2
    from ..model import GradELLM

    disable_progress_bar()
    print("Loading SmolLM2-135M-Instruct (the first time, its weights are unpacked: half a minute) ...", flush=True)
    model, tokenizer = load_smollm2()
    print("Asking it, and explaining its answer ...", flush=True)
    chat = [{"role": "user", "content": f"{CONTEXT}\n\n{QUESTION}"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    options: dict[str, Any] = {"max_new_tokens": _MAX_NEW_TOKENS, "do_sample": False}
    explainer = GradELLM(model, tokenizer, GradELLMConfig(output_layer_attributions=True))
    explainer.explain(chat, max_new_tokens=4)  # warms up, so that the times compare
    start = time.perf_counter()
    generated = model.generate(**inputs, **options)
    generation_time = time.perf_counter() - start
    start = time.perf_counter()
    explanation = explainer.explain(chat, **options)
    both_time = time.perf_counter() - start

    print(f"\nContext:  {CONTEXT}\nQuestion: {QUESTION}")
    print(f"Answer:   {explanation.answer}\n")
    print("The sentences that it rests on, with their shares and the places of their characters in the text:\n")
    print(explanation.sources("sentence", of="answer").render())
    print("\nEach word of the answer, and the words that contributed most to it, strongest first:\n")
    color = color or (sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    print(explanation.aggregate("word").render(color=color))

    folder.mkdir(parents=True, exist_ok=True)
    tensors, page = folder / "explanation.safetensors", folder / "explanation.html"
    explanation.save(tensors)
    explanation.to_html(page, title=QUESTION)
    print(f"\nGeneration alone took {generation_time:.2f} s, generation and explanation {both_time:.2f} s.")
    print(f"The token ids are {'the same' if generated[0].tolist() == explanation.token_ids else 'DIFFERENT'}.")
    print(f"Scores:   {tensors}\nReport:   {page} (open it in a browser)")
    print("Yours:    gradellm explain MODEL --chat --prompt-file question.txt --sources --html answer.html")
