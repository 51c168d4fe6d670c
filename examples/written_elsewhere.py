"""Explains text that another engine wrote, such as vLLM, and checks that it was the same model.

    python examples/written_elsewhere.py MODEL written.jsonl --output explained

Each line of the file is what the engine was given and what it gave back, as token ids, never as text that is tokenised again:

    {"prompt_token_ids": [504, 3575], "token_ids": [282, 6575], "log_probabilities": [-0.4, -1.2]}

The log-probabilities are those of the written tokens before temperature, penalties and the like. With vLLM, where these are
what it returns unless `logprobs_mode` says otherwise:

    for answer in llm.generate(prompts, SamplingParams(max_tokens=64, logprobs=0)):
        written = answer.outputs[0]
        found = [step[token].logprob for token, step in zip(written.token_ids, written.logprobs)]
        line = {"prompt_token_ids": list(answer.prompt_token_ids), "token_ids": list(written.token_ids), ...}

Two engines never agree to the last bit. What should agree is the mean difference of the log-probabilities: 1e-4 in float32, a
few hundredths in bfloat16. More means other weights, another precision or cache, another position or mask: then heatmaps
would explain another model than the one that wrote the text.

`--stand-in "a prompt"` writes such a file with Transformers' own `generate`, to try this without another engine.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradellm_hf import GradELLM, explain_sequences


class Written(NamedTuple):
    """A prompt, what an engine wrote after it, and the log-probability that it says each written token has."""

    prompt: list[int]
    tokens: list[int]
    log_probabilities: list[float]


class Agreement(NamedTuple):
    """Differences of log-probabilities: the mean and the largest by their size, and the step of the largest."""

    mean: float
    largest: float
    step: int


def read(path: Path) -> Iterator[Written]:
    """The lines of a file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        written = Written(record["prompt_token_ids"], record["token_ids"], record["log_probabilities"])
        if not written.tokens or len(written.tokens) != len(written.log_probabilities):
            raise SystemExit(f"Line {number} has {len(written.tokens)} tokens and {len(written.log_probabilities)} numbers.")
        yield written


def explained(explainer: GradELLM, written: Written) -> tuple[Any, Agreement]:
    """The explanation of what was written, and how far the model agrees with the engine that wrote it."""
    sequences = torch.tensor([[*written.prompt, *written.tokens]], device=explainer.model.device)
    out = explain_sequences(explainer, sequences, prompt_length=len(written.prompt))
    # Of a token that the model all but excludes, only the order of magnitude is known.
    here = out.token_probabilities[0].double().clamp_min(1e-30).log()
    differences = (here.cpu() - torch.tensor(written.log_probabilities, dtype=torch.float64)).abs()
    step = int(differences.argmax())
    agreement = Agreement(differences.mean().item(), differences[step].item(), step)
    return out.explanation(0, explainer.tokenizer), agreement


def stand_in(explainer: GradELLM, prompt: str, path: Path, max_new_tokens: int) -> None:
    """Writes what Transformers' own `generate` says of a text that it wrote."""
    ids = explainer.tokenizer(prompt, return_tensors="pt")["input_ids"].to(explainer.model.device)
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    out = explainer.model.generate(ids, **options)
    tokens = out.sequences[0, ids.shape[1] :].tolist()
    found = [step[0].float().log_softmax(-1)[token].item() for step, token in zip(out.logits, tokens)]
    record = {"prompt_token_ids": ids[0].tolist(), "token_ids": tokens, "log_probabilities": found}
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name or folder: the weights that the engine used")
    parser.add_argument("written", type=Path, help="the JSONL file")
    parser.add_argument("--dtype", default="auto", help="the engine's, such as bfloat16 (default: the model's own)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of the mean difference (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="a folder for the explanations, one file for each line")
    parser.add_argument("--stand-in", metavar="PROMPT", help="first write the file, with Transformers")
    parser.add_argument("--max-new-tokens", type=int, default=24, help="that the stand-in writes")
    options = parser.parse_args(arguments)
    explainer = GradELLM.from_pretrained(options.model, dtype=options.dtype)
    if options.stand_in is not None:
        stand_in(explainer, options.stand_in, options.written, options.max_new_tokens)
    differ = 0
    for number, written in enumerate(read(options.written)):
        explanation, agreement = explained(explainer, written)
        is_same = math.isfinite(agreement.mean) and agreement.mean <= options.tolerance
        differ += not is_same
        print(
            f"{number}: {len(written.tokens)} tokens, log-probabilities differ by {agreement.mean:.1e} on average, "
            f"at most {agreement.largest:.1e} (step {agreement.step}): {'the same model' if is_same else 'ANOTHER MODEL?'}"
        )
        if options.output is not None and is_same:
            options.output.mkdir(parents=True, exist_ok=True)
            explanation.save(options.output / f"{number:06d}.safetensors")
    return int(differ > 0)


if __name__ == "__main__":
    raise SystemExit(main())
