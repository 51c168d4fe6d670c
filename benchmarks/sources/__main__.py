"""`python -m benchmarks.sources [--split tune]`: the share of the right document, and how often it comes first.

Prompts of our own (prompts.jsonl): three documents, a question, and the document that has the answer. Half of them are for
choosing how scores are added up, the others for reporting. SmolLM2-135M-Instruct answers greedily. A prompt counts if the
answer holds the expected word. Each is asked twice: with the documents as they are, and in the reverse order. Shares are those
of the whole answer, which may speak of other documents too, and of the expected word in it. Beside them it is measured what the
answer loses without each document.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradellm_hf import Explanation, GradELLM, GradELLMConfig, explain_sequences
from gradellm_hf.demo_model import load_smollm2
from gradellm_hf.metrics import bootstrap
from gradellm_hf.text.shares import counted_scores, ignored_positions, shares
from gradellm_hf.text.units import span_ranges

PROMPTS = Path(__file__).with_name("prompts.jsonl")
MAX_NEW_TOKENS = 32


def with_threshold(threshold: float, *, together: bool = False) -> Callable[[Tensor, list[Any]], Tensor]:
    """Scores below this share of the largest do not count: that of their row, or of all rows."""

    def add_up(scores: Tensor, units: list[Any]) -> Tensor:
        everything = torch.ones(scores.shape[-1], dtype=torch.bool)
        counted = counted_scores(scores, everything, threshold, together=together)
        return torch.stack([counted[:, start:end].sum() for start, end in units])

    return add_up


def by_length(scores: Tensor, units: list[Any]) -> Tensor:
    return torch.stack([scores[:, start:end].sum() / (end - start) for start, end in units])


def rows_alike(scores: Tensor, units: list[Any]) -> Tensor:
    """Each generated token counts the same, however large its scores are."""
    return with_threshold(0.2)(shares(scores), units)


CHOSEN, BEFORE = "from 20 % of the part's largest", "from 20 % of the row's largest"
WAYS: dict[str, Callable[[Tensor, list[Any]], Tensor]] = {
    "plain sum": with_threshold(0),
    "sum over length": by_length,
    "from 10 % of the row's largest": with_threshold(0.1),
    BEFORE: with_threshold(0.2),
    "the same, rows of the same weight": rows_alike,
    "from 10 % of the part's largest": with_threshold(0.1, together=True),
    CHOSEN: with_threshold(0.2, together=True),
    "from 30 % of the part's largest": with_threshold(0.3, together=True),
}
CONFIGS = {
    "relu a layer": GradELLMConfig(positive_part="layer"),
    "relu a head": GradELLMConfig(),
    "head weights": GradELLMConfig(head_weights="gradellm_hf/calibration/smollm2-135m-instruct.safetensors"),
}


@dataclass(frozen=True)
class Answer:
    """An answer that holds the expected word, explained in each way of `CONFIGS`."""

    prompt: dict[str, Any]
    reverse: bool
    explanations: dict[str, Explanation]


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


def answers(split: str) -> Iterator[Answer]:
    """Asks each prompt of the split twice."""
    explainer = GradELLM(*load_smollm2())
    for line in PROMPTS.read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)
        for reverse in (False, True) if prompt["split"] == split else ():
            explanation = answered(explainer, prompt, reverse)
            if explanation is None:
                continue
            found = {}
            for name, config in CONFIGS.items():
                ids, border = torch.tensor([explanation.token_ids]), explanation.prompt_length
                out = explain_sequences(explainer, ids, border, explain_config=config)
                found[name] = dataclasses.replace(explanation, attributions=out.attributions[0], layer_attributions=None)
            yield Answer(prompt, reverse, found)


def measure(asked: list[Answer], name: str) -> dict[str, Any]:
    """For each way of adding up and each answer the share of the right document and whether it is the largest."""
    found: dict[str, Any] = {way: [] for way in WAYS}
    for answer in asked:
        explanation, prompt = answer.explanations[name], answer.prompt
        for way in WAYS:
            for of, rows in (("answer", written(explanation)), ("word", word_rows(explanation, prompt["answer"]))):
                share = shares_of(explanation, prompt["documents"], way, rows)
                right = share[prompt["right"]].item()
                cell = {"of": of, "reverse": answer.reverse, "share": right, "first": right == share.max().item()}
                found[way].append({**cell, "all": share.tolist()})
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


def gain(found: dict[str, Any]) -> str:
    """By how much the chosen way raises the right document's share of the whole answer, with its interval."""
    shares = [[row["share"] for row in found[way] if row["of"] == "answer"] for way in (CHOSEN, BEFORE)]
    mean, low, high = (x.item() for x in bootstrap(torch.tensor(shares[0]) - torch.tensor(shares[1])))
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def losses(explainer: GradELLM, answer: Answer) -> list[float]:
    """What the log-probability of the answer loses without each document, in nats."""
    explanation = answer.explanations["relu a head"]
    documents = [{str(i): text} for i, text in enumerate(answer.prompt["documents"])]
    return [explainer.removal_test(explanation, document, of="answer")[0].loss for document in documents]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=("tune", "report"), default="report")
    split = parser.parse_args().split
    torch.set_num_threads(1)
    asked = list(answers(split))
    print("Right document first, its mean share (the least).\n")
    print("| scores, how they are added up | whole answer | reversed | its word | reversed |")
    print("|---|---|---|---|---|")
    found = {name: measure(asked, name) for name in CONFIGS}
    for name in CONFIGS:
        print("\n".join(report(found[name], name)), flush=True)
    print(f"\n{CHOSEN} less {BEFORE}, whole answer: {gain(found['relu a head'])}")
    explainer = GradELLM(*load_smollm2())
    rows = [row for row in found["relu a head"][CHOSEN] if row["of"] == "answer"]
    needed = [losses(explainer, answer) for answer in asked]
    agree = sum(row["all"].index(max(row["all"])) == loss.index(max(loss)) for row, loss in zip(rows, needed))
    print(f"The document with the largest share is the one without which the answer loses most: {agree} of {len(asked)}")
    for answer, row, loss in zip(asked, rows, needed):
        if not row["first"]:
            explanation, right = answer.explanations["relu a head"], answer.prompt["right"]
            print(f"\n{answer.prompt['question']} {explanation.answer} (right: {right})")
            print("  share, loss without it: " + " | ".join(f"{x:.2f}, {y:.1f} nats" for x, y in zip(row["all"], loss)))


if __name__ == "__main__":
    main()
