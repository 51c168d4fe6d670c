"""The texts that are calibrated on: the model's own continuations of prompts, and what is measured of each."""

import random
from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..architecture.facts import ModelFacts
from ..architecture.running import explainable
from ..configuration import GradELLMConfig
from ..jobs.prompts import Prompt, PromptReader
from ..jobs.run import seeded
from ..metrics.perturbation import PerturbedText
from ..sequences.given import given_sequences
from ..text.encoding import encode_prompt, text_tokenizer
from ..text.token_text import special_tokens
from .features import head_features

_PROMPTS = Path(str(files("gradellm_hf.calibration") / "prompts.jsonl"))


def shipped_prompts(tokenizer: Any) -> PromptReader:
    """The prompts that the package ships. A tokenizer without a chat template gets the messages of chats as paragraphs."""
    reader = PromptReader(_PROMPTS, fields=("kind",))
    if getattr(tokenizer, "chat_template", None):
        return reader
    prompts = [reader[index] for index in range(len(reader))]
    return PromptReader(
        [{"prompt": _paragraphs(prompt.content), "id": prompt.id, **prompt.fields} for prompt in prompts], fields=("kind",)
    )


def _paragraphs(content: Any) -> str:
    return content if isinstance(content, str) else "".join(f"{message['content']}\n\n" for message in content)


def balanced_order(kinds: Sequence[str], seed: int) -> list[int]:
    """Positions of prompts in a random order in which every kind comes as often as it can, from the first on."""
    draw, by_kind = random.Random(seed), defaultdict(list)
    for index, kind in enumerate(kinds):
        by_kind[kind].append(index)
    for indices in by_kind.values():
        draw.shuffle(indices)
    turns = [(turn, kind, index) for kind, indices in by_kind.items() for turn, index in enumerate(indices)]
    return [index for _, _, index in sorted(turns)]


def measure(
    facts: ModelFacts,
    tokenizer: Any,
    prompt: Prompt,
    config: GradELLMConfig,
    seed: str,
    *,
    num_tokens: int,
    num_sources: int,
    batch_size: int,
) -> dict[str, Tensor]:
    """Lets the model continue a prompt, and measures how much it rests on some of the tokens, and what its heads say of them.

    Args:
        seed: Of the continuation and of the draw of tokens.
        num_tokens: How many the model writes.
        num_sources: How many tokens are left out, one at a time.
        batch_size: How many are left out per forward pass.

    Returns:
        `effects [N, K]`: what leaving out a source changes; `sources [K]`: their positions; `is_sink [K]`: see `draw_sources`;
        `before [N]`: the number of positions before each token; and the features of the heads, `[L, H, N, K]` in bfloat16.
    """
    ids = torch.tensor([encode_prompt(text_tokenizer(tokenizer), prompt.content)[2]], device=facts.input_device)
    model: Any = facts.model
    with seeded(seed, model):
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=num_tokens)
        sources, is_sink = draw_sources(written[0], tokenizer, num_sources)
    text = given_sequences(facts, written, ids.shape[1], None)
    perturbed = PerturbedText(model, written, ids.shape[1], batch_size=batch_size)
    row = torch.zeros_like(sources, device=written.device)
    with explainable(model):
        effects = perturbed.leave_one_out(row, sources.to(row)).mT
        features = head_features(facts, text, config, sources, perturbed.unchanged.cache(row[:1], text.prompt_length - 1))
    before = torch.arange(text.prompt_length, text.length)
    both = {name: x.to(torch.bfloat16) for name, x in features.items()}
    return {"effects": effects.float().cpu(), "sources": sources, "is_sink": is_sink, "before": before, **both}


def draw_sources(ids: Tensor, tokenizer: Any, number: int) -> tuple[Tensor, Tensor]:
    """Positions of a text that are left out, ascending, drawn by PyTorch's default generator; and which is a sink, `[K]` each.

    Where a text does not begin with a special token, much attention rests on its first token for nothing. A random draw seldom
    has it, so it is taken in addition, and marked.
    """
    drawn = torch.randperm(len(ids) - 1)[:number].sort().values
    if special_tokens(tokenizer, ids[:1].tolist())[0]:
        return drawn, torch.zeros_like(drawn, dtype=torch.bool)
    sources = torch.cat([drawn.new_zeros(1), drawn[drawn > 0]])
    return sources, sources == 0
