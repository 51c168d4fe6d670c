"""`python -m benchmarks.faithfulness.run`: all methods and metrics on the prompts of this folder, and the ablation.

A part that was stopped continues when it is run again. Parts may run at the same time, in several processes:
`--parts sentiment yes_no`. When all are done, `python -m benchmarks.faithfulness.report` writes RESULTS.md.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from gradellm_hf.demo_model import load_smollm2
from gradellm_hf.evaluation import Evaluation, Settings, evaluate
from gradellm_hf.methods import Method, attn_lrp, get_method, integrated_gradients, lime, method_names
from gradellm_hf.methods.lxt_adapter import INTERPRETER
from gradellm_hf.metrics.options import Scope

from .variants import VARIANTS

PROMPTS = Path(__file__).with_name("prompts.jsonl")
DEFAULT_OUTPUT = Path("faithfulness-output")
_ABLATION_METRICS = ("pi_soft_ns", "pi_soft_nc", "rank_correlation")
_ABLATION_PIS = (0.2, 0.5, 0.8)
_SEED = 2026
# Cheaper than by default: a CPU has to run them some hundred times.
_CHEAPER: dict[str, Method] = {
    "integrated_gradients": partial(integrated_gradients, num_points=20),
    "lime": partial(lime, num_samples=128),
}


class Part(NamedTuple):
    """An evaluation: which prompts, how long the continuations are, and how these are measured."""

    where: Mapping[str, str]
    num_tokens: int = 1
    level: Scope = "step"
    variants: Sequence[str] = ()


# The variants that did well on the prompts to tune on. On the reported prompts they were run once.
_CHOSEN = (
    "default",
    "relu_per_head",
    "relu_per_head_but_first_layer",
    "absolute_per_layer",
    "attention_gradient_value_norm",
    "likeliest_absolute",
    "saliency_product",
    "relu_per_head_saliency_product",
)
PARTS = {
    "sentiment": Part({"task": "sentiment", "split": "report"}),
    "yes_no": Part({"task": "yes_no", "split": "report"}),
    "recall": Part({"task": "recall", "split": "report"}),
    "open": Part({"task": "open", "split": "report"}, num_tokens=8, level="sequence"),
    "lambada": Part({}),
    "ablation": Part({"split": "tune"}, variants=tuple(VARIANTS)),
    "ablation_report": Part({"split": "report"}, variants=_CHOSEN),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=None, help="only these (default: all)")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the results (default: %(default)s)")
    parser.add_argument("--lambada", type=Path, help="JSONL with `text` and `rationale`; without it that part is left out")
    parser.add_argument("--dtype", default="bfloat16", help="of the model (default: %(default)s)")
    parser.add_argument("--max-prompts", type=int, help="only the first so many of each part")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = load_smollm2(dtype=getattr(torch, options.dtype))
    for name in options.parts or PARTS:
        if name == "lambada" and options.lambada is None:
            continue
        evaluation = run_part(name, model, tokenizer, options)
        print(f"{name}: {evaluation}, {len(evaluation.errors)} failed", flush=True)


def run_part(name: str, model: Any, tokenizer: Any, options: argparse.Namespace) -> Evaluation:
    """Runs a part into its folder, or continues it."""
    part = PARTS[name]
    settings = Settings(level=part.level, num_portions=4, seed=_SEED)
    methods = _methods()
    metrics = None
    if part.variants:
        settings = Settings(level=part.level, pis=_ABLATION_PIS, seed=_SEED)
        metrics = _ABLATION_METRICS
        methods = {variant: VARIANTS[variant].method for variant in part.variants}
    return evaluate(
        model,
        options.lambada if name == "lambada" else read_prompts(),
        options.output / name,
        tokenizer=tokenizer,
        methods=methods,
        metrics=metrics,
        settings=settings,
        column="text" if name == "lambada" else None,
        where=part.where,
        max_prompts=options.max_prompts,
        max_new_tokens=part.num_tokens,
    )


def _methods() -> dict[str, Method]:
    """All registered methods, and AttnLRP if an environment with lxt is named."""
    methods = {method: _CHEAPER.get(method, get_method(method)) for method in method_names()}
    if os.environ.get(INTERPRETER):
        methods |= {"attn_lrp": attn_lrp(), "attn_lrp_absolute": attn_lrp(absolute=True)}
    return methods


def read_prompts() -> list[dict[str, Any]]:
    """The prompts of this folder, as they are given to the model.

    So small a model seldom begins its turn in a chat with the word that was asked for. So questions with one right answer are
    given as text that ends where the word belongs. Other chats get an empty system message instead of the one that the chat
    template would write.
    """
    records = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    for record in records:
        if "messages" in record and "answer" in record:
            text = record.pop("messages")[0]["content"]
            record["prompt"] = text if text.endswith(":") else text + "\nOne-word answer:"
        elif "messages" in record:
            record["messages"].insert(0, {"role": "system", "content": ""})
    return records


if __name__ == "__main__":
    main()
