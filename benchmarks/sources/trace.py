"""`python -m benchmarks.sources.trace`: what does a result rest on, if the answer first states the facts that it needs?

The measures were fixed before the first run. Of the heatmap of the result's tokens only the ten facts count. The score of a
fact is the sum over its tokens, as `Explanation.sources` adds up (without scores below a fifth of the largest in their row),
and of all scores.

- MRR: mean reciprocal rank of the needed facts, each ranked among those that are not needed; equal ones share their ranks.
- Share: the score of the needed facts over that of all ten.

Nothing was chosen on these prompts. SmolLM2-135M-Instruct, given answers; intervals: 95 %, bootstrap over prompts, of paired
differences.
"""

import dataclasses
import sys
import time

import torch
from torch import Tensor

from benchmarks.sources.reasoned import Reasoned, prompts
from gradellm_hf import Explanation, GradELLM, GradELLMConfig
from gradellm_hf.demo_model import load_smollm2
from gradellm_hf.methods import flash_trace
from gradellm_hf.methods.flashtrace_adapter import traced_routes
from gradellm_hf.metrics import bootstrap
from gradellm_hf.text.shares import THRESHOLD, counted_scores, shares
from gradellm_hf.text.units import span_ranges

WEIGHTS = "gradellm_hf/calibration/smollm2-135m-instruct.safetensors"
PLAIN, TRACED, FLASH = "Grad-ELLM, heatmap", "Grad-ELLM, `trace()`", "FlashTrace, 1 hop"
MEASURES = ("MRR", "share", "MRR, all scores", "share, all scores")
PAIRS = ((TRACED, PLAIN), (TRACED, FLASH), (PLAIN, "FlashTrace, no hop"))


def explained(explainer: GradELLM, prompt: Reasoned) -> Explanation:
    chat = [{"role": "user", "content": " ".join(prompt.facts) + "\n\n" + prompt.question}]
    explanation: Explanation = explainer.explain(chat, target=prompt.reason + prompt.result)
    return explanation


def result_rows(explanation: Explanation, prompt: Reasoned) -> int:
    """How many rows, at the end, write the result."""
    rows, text = 0, ""
    while len(text) < len(prompt.result):
        rows += 1
        text = explanation.tokens[-rows] + text
    if text != prompt.result:
        raise ValueError(f"The result {prompt.result!r} is not a number of tokens: {text!r}.")
    return rows


def of_facts(explanation: Explanation, rows: Tensor, prompt: Reasoned, threshold: float) -> Tensor:
    """The shares of the ten facts, `[10]`, in these rows `[M, S]`."""
    units, names = span_ranges(explanation, {str(i): fact for i, fact in enumerate(prompt.facts)})
    found = {name: unit for unit, name in zip(units, names) if name is not None}
    spans = [found[str(i)] for i in range(len(prompt.facts))]
    inside = torch.zeros(rows.shape[-1], dtype=torch.bool)
    for start, end in spans:
        inside[start:end] = True
    counted = counted_scores(rows, inside, threshold)
    return shares(torch.stack([counted[:, start:end].sum() for start, end in spans]))


def measured(share: Tensor, needed: set[int]) -> tuple[float, float]:
    """Mean reciprocal rank of the needed facts, and their share."""
    others = torch.stack([value for i, value in enumerate(share) if i not in needed])
    ranks = [1 + (others > share[i]).sum().item() + 0.5 * (others == share[i]).sum().item() for i in needed]
    return sum(1 / rank for rank in ranks) / len(ranks), sum(share[i].item() for i in needed)


def heatmaps(model: GradELLM, weighted: GradELLM, prompt: Reasoned) -> tuple[Explanation, dict[str, Tensor]]:
    """The rows of the result's tokens by each method, `[M, S]`."""
    explanation = explained(model, prompt)
    by_weights = explained(weighted, prompt)
    ids, border = torch.tensor([explanation.token_ids]), explanation.prompt_length
    rows = result_rows(explanation, prompt)
    routes = dataclasses.replace(explanation, attributions=flash_trace()(model.model, ids, border)[0], layer_attributions=None)
    by_hops = traced_routes(model.model, ids, border, len(explanation.tokens) - rows, 3)[:, None]
    return explanation, {
        PLAIN: explanation.attributions[-rows:],
        TRACED: explanation.trace().attributions[-rows:],
        "with head weights, heatmap": by_weights.attributions[-rows:],
        "with head weights, `trace()`": by_weights.trace().attributions[-rows:],
        "FlashTrace, no hop": by_hops[0],
        FLASH: by_hops[1],
        "FlashTrace, 3 hops": by_hops[3],
        "FlashTrace's rows, `trace()`": routes.trace().attributions[-rows:],
    }


def measure() -> dict[str, Tensor]:
    """By method, `[prompts, 4]`: `MEASURES`."""
    loaded = load_smollm2()
    model, weighted = GradELLM(*loaded), GradELLM(*loaded, GradELLMConfig(head_weights=WEIGHTS))
    found: dict[str, list[list[float]]] = {}
    for prompt in prompts():
        print(f"{prompt.kind}: {prompt.reason}{prompt.result}", file=sys.stderr, flush=True)
        explanation, by_method = heatmaps(model, weighted, prompt)
        for name, rows in by_method.items():
            cells = [measured(of_facts(explanation, rows, prompt, threshold), prompt.needed) for threshold in (THRESHOLD, 0)]
            found.setdefault(name, []).append([*cells[0], *cells[1]])
    return {name: torch.tensor(values) for name, values in found.items()}


def table(found: dict[str, Tensor], chosen: Tensor) -> list[str]:
    """Means over the chosen prompts."""
    lines = [f"| method | {' | '.join(MEASURES)} |", "|---" * (1 + len(MEASURES)) + "|"]
    return lines + [
        f"| {name} | {' | '.join(f'{mean:.2f}' for mean in values[chosen].mean(0))} |" for name, values in found.items()
    ]


def differences(found: dict[str, Tensor]) -> list[str]:
    """Paired differences of methods with their intervals."""
    lines = [f"| difference | {' | '.join(MEASURES)} |", "|---" * (1 + len(MEASURES)) + "|"]
    for first, second in PAIRS:
        intervals = bootstrap((found[first] - found[second]).T)
        cells = [f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" for mean, low, high in zip(*map(Tensor.tolist, intervals))]
        lines.append(f"| {first} less {second} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    found, kinds = measure(), [prompt.kind for prompt in prompts()]
    print(f"All {len(kinds)} prompts:\n", *table(found, torch.ones(len(kinds), dtype=torch.bool)), "", sep="\n")
    print(*differences(found), sep="\n")
    for kind in dict.fromkeys(kinds):
        print(f"\n{kind}:\n", *table(found, torch.tensor([known == kind for known in kinds])), sep="\n")
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
