"""`python -m benchmarks.head_weights.measure FAMILY FOLDER`: what leaving out changes, and what heads say of it, text by text.

The texts, and what is left out of them, are those of `calibrate`.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.faithfulness.families import FAMILIES
from gradellm_hf import GradELLMConfig
from gradellm_hf.architecture.facts import ModelFacts, look_at
from gradellm_hf.architecture.running import explainable
from gradellm_hf.calibration.features import FEATURES, head_features
from gradellm_hf.calibration.texts import balanced_order, draw_sources, shipped_prompts
from gradellm_hf.jobs.prompts import Prompt
from gradellm_hf.jobs.run import seeded
from gradellm_hf.methods.surrogate import logit
from gradellm_hf.metrics.perturbation import PerturbedText
from gradellm_hf.metrics.sources import Sources
from gradellm_hf.sequences.given import given_sequences
from gradellm_hf.text.encoding import encode_prompt
from gradellm_hf.text.token_text import special_tokens

from .frozen import frozen_norms

_FEATURES = {**FEATURES, "attention": lambda weights, contributions, gradient, value: weights}
_GRADIENTS = {"": lambda model: contextlib.nullcontext(), "frozen-": frozen_norms}
_SAMPLE = 12  # tokens that are written, left out one at a time, and masks
_SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path, help="for a file per text; a run that was stopped goes on")
    parser.add_argument("--num-prompts", type=int, help="in equal parts of each kind (default: all)")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    options.folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = FAMILIES[options.family]()
    facts, reader = look_at(model), shipped_prompts(tokenizer)
    kinds = [str(reader[index].fields["kind"]) for index in range(len(reader))]
    for number, index in enumerate(balanced_order(kinds, _SEED)[: options.num_prompts]):
        path = options.folder / f"{number:03d}-{kinds[index]}.safetensors"
        if not path.exists():
            save_file(measured(facts, tokenizer, reader[index], f"{_SEED}-{index}"), path)
            print(path.name, flush=True)


def measured(facts: ModelFacts, tokenizer: Any, prompt: Prompt, seed: str) -> dict[str, Tensor]:
    """What `calibrate` measures of a text, with more features; and the same sums of features for random masks.

    Returns:
        `effects [N, K]`, `sources [K]`, `is_sink [K]`, `before [N]` and features `[L, H, N, K]`; `masked-effects [N, M]`: the
        logits of the tokens with half of the prompt's tokens hidden from attention, negated; and `masked-` features
        `[L, H, N, M]`: sums over the hidden tokens.
    """
    model: Any = facts.model
    ids = torch.tensor([encode_prompt(tokenizer, prompt.content)[2]])
    with seeded(seed, model):
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=_SAMPLE)
        chosen, is_sink = draw_sources(written[0], tokenizer, _SAMPLE)
    text = given_sequences(facts, written, ids.shape[1], None)
    special = torch.tensor(special_tokens(tokenizer, ids[0].tolist()))
    perturbed = PerturbedText(model, written, ids.shape[1], fixed=special, keep_last=True, batch_size=3)
    row, everything, features = torch.zeros_like(chosen), torch.arange(written.shape[1] - 1), {}
    with explainable(model):
        effects = perturbed.leave_one_out(row, chosen).mT
        for gradient, patched in _GRADIENTS.items():
            with patched(model):
                cache = perturbed.unchanged.cache(row[:1], text.prompt_length - 1)
                found = head_features(facts, text, GradELLMConfig(), everything, cache, _FEATURES)
            features |= {f"{gradient}{name}": x for name, x in found.items()}
    del features["frozen-attention"]  # which is the same
    sources = Sources(perturbed, None, "mask")
    kept, probabilities = (x[0] for x in sources.random_ablations(_SAMPLE, torch.Generator().manual_seed(_SEED)))
    hidden = 1 - torch.cat([kept, kept.new_ones(len(kept), 1)], 1)[:, sources.source_of[0]].float()
    sums = {name: torch.einsum("lhnk,mk->lhnm", x[..., : ids.shape[1]], hidden) for name, x in features.items()}
    tensors = {name: x[..., chosen].to(torch.bfloat16) for name, x in features.items()}
    tensors |= {f"masked-{name}": x.to(torch.bfloat16) for name, x in sums.items()}
    tensors |= {"effects": effects.float(), "masked-effects": -logit(probabilities).mT.float()}
    tensors |= {"sources": chosen, "is_sink": is_sink, "before": torch.arange(text.prompt_length, text.length)}
    return {name: x.contiguous() for name, x in tensors.items()}


if __name__ == "__main__":
    main()
