"""`python -m benchmarks.sources [--split tune]`: the share of the right document, and how often it comes first.

Prompts of our own (prompts.jsonl): three documents, a question, and the document that has the answer. The first ten are for
choosing how scores are added up, the other ten for reporting. SmolLM2-135M-Instruct answers greedily. A prompt counts if the
answer holds the expected word. Each is asked twice: with the documents as they are, and in the reverse order. Shares are those
of the whole answer, which may speak of other documents too, and of the expected word in it.
"""

import argparse
import json
from collections.abc import Callable
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradellm_hf import Explanation, GradELLM, GradELLMConfig
from gradellm_hf.demo_model import load_smollm2
from gradellm_hf.text.shares import counted_scores, ignored_positions, shares
from gradellm_hf.text.units import span_ranges

PROMPTS = Path(__file__).with_name("prompts.jsonl")
MAX_NEW_TOKENS = 32


def with_threshold(threshold: float) -> Callable[[Tensor, list[Any]], Tensor]:
    """Scores below this share of their row's largest do not count."""

    def add_up(scores: Tensor, units: list[Any]) -> Tensor:
        counted = counted_scores(scores, torch.ones(scores.shape[-1], dtype=torch.bool), threshold)
        return torch.stack([counted[:, start:end].sum() for start, end in units])

    return add_up


def by_length(scores: Tensor, units: list[Any]) -> Tensor:
    return torch.stack([scores[:, start:end].sum() / (end - start) for start, end in units])


def rows_alike(scores: Tensor, units: list[Any]) -> Tensor:
    """Each generated token counts the same, however large its scores are."""
    return with_threshold(0.2)(shares(scores), units)


WAYS: dict[str, Callable[[Tensor, list[Any]], Tensor]] = {
    "plain sum": with_threshold(0),
    "sum over length": by_length,
    "from 5 % of the row's largest": with_threshold(0.05),
    "from 10 %": with_threshold(0.1),
    "from 20 %": with_threshold(0.2),
    "from 20 %, rows of the same weight": rows_alike,
}


def shares_of(explanation: Explanation, documents: list[str], way: str, rows: list[bool]) -> Tensor:
    """The shares of the documents, `[3]`, for these rows."""
    units, names = span_ranges(explanation, {str(i): text for i, text in enumerate(documents)})
    found = {name: unit for unit, name in zip(units, names) if name is not None}
    spans = [found[str(i)] for i in range(len(documents))]
    inside = torch.zeros(len(explanation.tokens), dtype=torch.bool)
    for start, end in spans:
        inside[start:end] = True
    scores = explanation.attributions[rows].masked_fill(~inside | ignored_positions(explanation), 0)
    return shares(WAYS[way](scores, spans))


def answered(explainer: GradELLM, prompt: dict[str, Any], reverse: bool) -> Explanation | None:
    """The explanation of the answer; None if it is not the expected one."""
    documents = prompt["documents"][::-1] if reverse else prompt["documents"]
    chat = [
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": "\n\n".join(documents) + "\n\nQuestion: " + prompt["question"]},
    ]
    explanation: Explanation = explainer.explain(chat, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    return explanation if prompt["answer"].lower() in explanation.answer.lower() else None


def measure(split: str, config: GradELLMConfig) -> dict[str, Any]:
    """For each way, order and answered prompt the share of the right document and whether it is the largest."""
    explainer = GradELLM(*load_smollm2(), config)
    prompts = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    found: dict[str, Any] = {way: [] for way in WAYS}
    for prompt in prompts:
        for reverse in (False, True) if prompt["split"] == split else ():
            explanation = answered(explainer, prompt, reverse)
            if explanation is None:
                continue
            for way in WAYS:
                for of, rows in (("answer", written(explanation)), ("word", word_rows(explanation, prompt["answer"]))):
                    share = shares_of(explanation, prompt["documents"], way, rows)
                    right = share[prompt["right"]].item()
                    found[way].append({"of": of, "reverse": reverse, "share": right, "first": right == share.max().item()})
    return found


def written(explanation: Explanation) -> list[bool]:
    """The rows of the answer, without those of special tokens."""
    return [not special for special in explanation.special[explanation.prompt_length :]]


def word_rows(explanation: Explanation, word: str) -> list[bool]:
    """The rows of the tokens that write a word of the answer."""
    border = explanation.prompt_length
    bounds = list(accumulate(map(len, explanation.tokens), initial=0))
    start = explanation.text.lower().index(word.lower(), bounds[border])
    return [a < start + len(word) and start < b for a, b in pairwise(bounds[border:])]


def report(found: dict[str, Any], name: str) -> list[str]:
    """Rows of a table."""
    lines = []
    for way, rows in found.items():
        cells = []
        for of, reverse in product(("answer", "word"), (False, True)):
            part = [row for row in rows if (row["of"], row["reverse"]) == (of, reverse)]
            mean, least = sum(row["share"] for row in part) / len(part), min(row["share"] for row in part)
            cells.append(f"{sum(row['first'] for row in part)} of {len(part)}, {mean:.2f} ({least:.2f})")
        lines.append(f"| {name}, {way} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=("tune", "report"), default="report")
    split = parser.parse_args().split
    torch.set_num_threads(1)
    print("Right document first, its mean share (the least).\n")
    print("| scores, how they are added up | whole answer | reversed | its word | reversed |")
    print("|---|---|---|---|---|")
    for part in ("layer", "head"):
        print("\n".join(report(measure(split, GradELLMConfig(positive_part=part)), f"relu a {part}")), flush=True)


if __name__ == "__main__":
    main()
