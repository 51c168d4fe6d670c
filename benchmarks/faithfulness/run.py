"""`python -m benchmarks.faithfulness.run`: methods and metrics on prompts of several kinds, for two model families.

About five hours on two CPU cores. What was measured is kept text by text, in `records`: a run that was stopped goes on when it
is started again, and one that is finished measures nothing. Parts may run at the same time, in several processes:
`--families smollm2 --parts own known`. `python -m benchmarks.faithfulness.report` writes RESULTS.md.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

from gradellm_hf import GradELLMConfig
from gradellm_hf.evaluation import Evaluation, Settings, contradictions, evaluate, injections, needles
from gradellm_hf.methods import (
    Method,
    at2,
    attn_lrp,
    context_cite,
    flash_trace,
    get_method,
    gim,
    grad_ellm,
    integrated_gradients,
    lime,
    method_names,
)
from gradellm_hf.methods.lxt_adapter import INTERPRETER

from .families import FAMILIES
from .learned import at2_weights, head_weights
from .variants import VARIANTS

PROMPTS = Path(__file__).with_name("prompts.jsonl")
DEFAULT_OUTPUT = Path(__file__).with_name("records")
#: Named before the run: how well scores of sentences predict what random ones are worth, what the first of them is worth, and
#: how well scores of tokens rank what each is worth.
PRIMARY = ("lds_source", "top_1_drop", "rank_correlation")
SECONDARY = ("pearson_correlation", "top_3_drop")
#: Metrics that take many forward passes for each method.
COSTLY = ("lds_token", "lds_source_drop", "pi_soft_ns", "pi_soft_nc", "mas_deletion", "mas_insertion")
KNOWN_SOURCE = ("reciprocal_rank", "recall_at_1", "recall_at_3", "top_1_drop")
REFERENCE = "grad_ellm"  # what the others are compared with
_ABLATION = ("rank_correlation", "pearson_correlation", "top_1_drop")
_SETTINGS = Settings(pis=(0.2, 0.5, 0.8), num_portions=4, num_masks=32, seed=2026)
# Cheaper than by default: a CPU has to run them some dozen times.
_CHEAPER: dict[str, Method] = {
    "integrated_gradients": partial(integrated_gradients, num_points=20),
    "lime": partial(lime, num_samples=128),
}
#: Methods that run a text some hundred times. They are compared with the others on fewer prompts.
_MANY_PASSES = ("leave_one_out", "integrated_gradients", "occlusion", "lime", "context_cite_256", "context_cite_tokens")
#: Head weights on the positive part of contributions, though they were learned for magnitudes. Only where it is named.
_OF_CONTRIBUTIONS = "calibrated_contribution"
#: Methods that take a pass or two over a text: for long texts. `attention_mean` keeps all maps, 16 GB at 4,096 tokens.
_LIGHT = (REFERENCE, "calibrated", "attention_mean", "saliency", "random")


class Part(NamedTuple):
    """An evaluation of a family.

    Attributes:
        prompts: From the tokenizer and the options of the command line to records, a file, or None: left out.
        metrics: Names.
        num_tokens: Tokens that are written and explained, for each prompt without a `target`.
        methods: Names; None: all but those of `_MANY_PASSES`.
        many_passes: Whether those are run, too.
        families: That it is run for.
    """

    prompts: Callable[[Any, argparse.Namespace], Any]
    metrics: Sequence[str]
    num_tokens: int = 1
    methods: Sequence[str] | None = None
    many_passes: bool = False
    families: Sequence[str] = tuple(FAMILIES)


def _own(split: str, per_task: int) -> Callable[[Any, argparse.Namespace], Any]:
    """The first prompts of each task of this folder."""

    def prompts(tokenizer: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
        by_task = defaultdict(list)
        for record in read_prompts(chat=tokenizer.chat_template is not None):
            if record["split"] == split:
                by_task[record["task"]].append(record)
        return [record for records in by_task.values() for record in records[:per_task]]

    return prompts


def _known(tokenizer: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        *needles(tokenizer, lengths=(512,), num_prompts=1),
        *contradictions(num_prompts=6),
        *injections(num_prompts=12),
    ]


def _long(tokenizer: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    return needles(tokenizer, lengths=(1024, 2048, 4096), num_prompts=1)


# The variants that did well on the prompts to tune on. On the reported prompts they were run once.
_CHOSEN = (
    "relu_per_layer",
    "relu_per_head",
    "relu_per_head_but_first_layer",
    "absolute_per_layer",
    "attention_gradient_value_norm",
    "likeliest_absolute",
    "saliency_product",
    "relu_per_head_saliency_product",
)
PARTS = {
    "lambada": Part(lambda tokenizer, options: options.lambada, (*PRIMARY, *SECONDARY, "auc", "average_precision")),
    "own": Part(_own("report", 5), (*PRIMARY, *SECONDARY), num_tokens=3),
    "known": Part(_known, KNOWN_SOURCE),
    "many_passes": Part(_own("report", 2), (*PRIMARY, *SECONDARY, *COSTLY), many_passes=True),
    "known_features": Part(_known, KNOWN_SOURCE, methods=(REFERENCE, "calibrated", _OF_CONTRIBUTIONS)),
    "known_long": Part(_long, KNOWN_SOURCE, methods=_LIGHT),
    "ablation": Part(_own("tune", 3), _ABLATION, methods=tuple(VARIANTS), families=("smollm2",)),
    "ablation_report": Part(_own("report", 5), _ABLATION, methods=_CHOSEN, families=("smollm2",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=tuple(FAMILIES), help="only these (default: all)")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=tuple(PARTS), help="only these (default: all)")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the results (default: %(default)s)")
    parser.add_argument("--lambada", type=Path, help="JSONL with `text` and `rationale`; without it that part is left out")
    parser.add_argument("--max-prompts", type=int, help="only the first so many of each part")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    for family in options.families:
        model, tokenizer = FAMILIES[family]()
        methods = all_methods(family, tokenizer)
        for name in options.parts:
            if family in PARTS[name].families and PARTS[name].prompts(tokenizer, options) is not None:
                evaluation = run_part(name, model, tokenizer, methods, options, options.output / family / name)
                print(f"{family}, {name}: {evaluation}, {len(evaluation.errors)} failed", flush=True)


def run_part(
    name: str, model: Any, tokenizer: Any, methods: Mapping[str, Method], options: argparse.Namespace, folder: Path
) -> Evaluation:
    """Runs a part into its folder, or continues it."""
    part = PARTS[name]
    known = {**methods, **{variant: VARIANTS[variant].method for variant in VARIANTS}}
    left_out = (_OF_CONTRIBUTIONS, *(() if part.many_passes else _MANY_PASSES))
    wanted = part.methods or [method for method in methods if method not in left_out]
    return evaluate(
        model,
        part.prompts(tokenizer, options),
        folder,
        tokenizer=tokenizer,
        methods={method: known[method] for method in wanted if method in known},
        metrics=part.metrics,
        settings=_SETTINGS,
        column="text" if name == "lambada" else None,
        max_prompts=options.max_prompts,
        max_new_tokens=part.num_tokens,
    )


def all_methods(family: str, tokenizer: Any) -> dict[str, Method]:
    """All registered methods, those with weights that were learned for a family, and those whose packages are installed."""
    methods = {method: _CHEAPER.get(method, get_method(method)) for method in method_names()}
    magnitudes = head_weights(family)
    contributions = dataclasses.replace(magnitudes, feature="contribution")
    methods |= {
        "calibrated": partial(grad_ellm, explain_config=GradELLMConfig(head_weights=magnitudes)),
        _OF_CONTRIBUTIONS: partial(grad_ellm, explain_config=GradELLMConfig(head_weights=contributions)),
        "at2": at2(at2_weights(family)),
        "context_cite_256": partial(context_cite, num_ablations=256),
        "context_cite_tokens": _context_cite_tokens,
    }
    if importlib.util.find_spec("gim"):
        methods["gim"] = gim(tokenizer)
    if importlib.util.find_spec("flashtrace"):
        methods["flash_trace"] = flash_trace()
    if os.environ.get(INTERPRETER):
        methods |= {"attn_lrp": attn_lrp(), "attn_lrp_absolute": attn_lrp(absolute=True)}
    return methods


def _context_cite_tokens(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """ContextCite by token, with many ablations. It takes no `sources`, since an evaluation would give it the sentences."""
    return context_cite(model, sequences, prompt_length, attention_mask, num_ablations=256, generator=generator)


def read_prompts(chat: bool = True) -> list[dict[str, Any]]:
    """The prompts of this folder, as they are given to the model.

    So small a model seldom begins its turn in a chat with the word that was asked for. So questions with one right answer are
    given as text that ends where the word belongs. Other chats get an empty system message instead of the one that the chat
    template would write; a model without a template gets the message as text.
    """
    records = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    for record in records:
        if "messages" in record and "answer" in record:
            text = record.pop("messages")[0]["content"]
            record["prompt"] = text if text.endswith(":") else text + "\nOne-word answer:"
        elif "messages" in record and chat:
            record["messages"].insert(0, {"role": "system", "content": ""})
        elif "messages" in record:
            record["prompt"] = record.pop("messages")[0]["content"] + "\n"
    return records


if __name__ == "__main__":
    main()
