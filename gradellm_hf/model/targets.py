"""Texts that are given in place of what a model would write: why this, and why not that."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..architecture.facts import look_at
from ..architecture.support import ModelWrapper
from ..checks.arguments import one_each
from ..configuration import GradELLMConfig
from ..generation import explain_generate, explain_sequences
from ..results.chats import EncodedPrompt
from ..results.explanation import Explanation
from ..sequences.steps import Steps
from ..text.encoding import encode_target
from ..text.foils import first_difference
from ..text.token_text import token_texts
from .reading import Reading, in_batches

_SIGNED = GradELLMConfig(positive_only=False)  # of a contrast: scores for the one and for the other


def targets_of(reading: Reading, asked: Sequence[EncodedPrompt], target: str | Sequence[str]) -> list[list[int]]:
    """The token ids of a text for each prompt, to follow it."""
    texts = one_each("target", target, len(asked))
    return [encode_target(reading.text_tokenizer, *prompt.encoded, text) for prompt, text in zip(asked, texts)]


def explain_targets(
    explainer: ModelWrapper,
    reading: Reading,
    asked: Sequence[EncodedPrompt],
    targets: list[list[int]],
    explain_config: GradELLMConfig | None,
    steps: Steps | None = None,
) -> list[Explanation]:
    """Explanations of given token ids after prompts."""
    if any(prompt.images for prompt in asked):
        pairs = zip(asked, targets)
        return [row for one in pairs for row in _written_as_told(explainer, reading, *one, explain_config, steps)]
    prompt = reading.batch(asked)
    target_ids, target_mask = (x.flip(1) for x in reading.padded([target[::-1] for target in targets]))
    sequences = torch.cat([prompt["input_ids"], target_ids], dim=1)
    mask = torch.cat([prompt["attention_mask"], target_mask], dim=1)
    prompt_length = prompt["input_ids"].shape[1]
    out = explain_sequences(explainer, sequences, prompt_length, mask, explain_config=explain_config, steps=steps)
    return reading.explanations(out, asked)


class _Told(LogitsProcessor):
    """Leaves no choice but one token in each step."""

    def __init__(self, prompt_length: int, token_ids: list[int]):
        self._prompt_length, self._token_ids = prompt_length, token_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, self._token_ids[input_ids.shape[1] - self._prompt_length]] = 0
        return chosen


def _written_as_told(
    explainer: ModelWrapper,
    reading: Reading,
    prompt: EncodedPrompt,
    target: list[int],
    explain_config: GradELLMConfig | None,
    steps: Steps | None,
) -> list[Explanation]:
    """The explanation of given token ids after a prompt with images: the model writes them, so that it is asked for nothing
    but what it takes. It works out by itself which positions its images take."""
    batch = reading.batch([prompt])
    told = LogitsProcessorList([_Told(batch["input_ids"].shape[1], target)])
    no_end = look_at(reading.model).vocabulary_size  # a token that is never written
    out = explain_generate(
        explainer,
        **batch,
        logits_processor=told,
        max_new_tokens=len(target),
        eos_token_id=no_end,
        min_length=0,
        min_new_tokens=None,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        explain_config=explain_config,
        steps=steps,
    )
    return reading.explanations(out, [prompt])


def explain_contrasts(
    explainer: ModelWrapper,
    reading: Reading,
    asked: list[EncodedPrompt],
    target: str | Sequence[str] | None,
    foil: str | Sequence[str],
    explain_config: GradELLMConfig | None,
    generate_kwargs: dict[str, Any],
) -> list[Explanation]:
    """The explanations of the first step at which what is written (or the target) and the foil differ."""
    foils, tokenizer = one_each("foil", foil, len(asked)), reading.text_tokenizer
    if target is None:
        kwargs, written = reading.generate_kwargs(generate_kwargs), []
        for together in in_batches(asked):
            out = explain_generate(explainer, **reading.batch(together), steps=slice(0), **kwargs)  # nothing is explained yet
            written += [row[mask].tolist() for row, mask in zip(out.sequences[:, out.prompt_length :], out.step_mask)]
        each = len(written) // len(asked)
        asked, foils = [x for x in asked for _ in range(each)], [x for x in foils for _ in range(each)]
    else:
        written = targets_of(reading, asked, target)
    pairs = [
        first_difference(ids, encode_target(tokenizer, *prompt.encoded, text), text)
        for prompt, ids, text in zip(asked, written, foils)
    ]
    asked = [prompt.continued(ids[:step]) for prompt, ids, (step, _) in zip(asked, written, pairs)]
    config = dataclasses.replace(
        explain_config or explainer.explain_config or _SIGNED,
        target="contrast",
        contrast_token_ids=[[token_id] for _, token_id in pairs],
    )
    rows = explain_targets(explainer, reading, asked, [[ids[step]] for ids, (step, _) in zip(written, pairs)], config)
    names = [token_texts(tokenizer, [*prompt.ids, token_id])[-1] for prompt, (_, token_id) in zip(asked, pairs)]
    return [dataclasses.replace(row, foil=name) for row, name in zip(rows, names)]
