"""From a record with a prompt to the text to evaluate: its tokens, which of them are fixed, and what people marked."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..architecture.reading import input_device
from ..checks.arguments import is_index, is_list
from ..errors import InvalidInputError
from ..jobs.prompts import Prompt
from ..metrics.agreement import token_labels
from ..model import GradELLM
from ..text.encoding import encode_prompt, encode_target, text_tokenizer
from ..text.image_patches import ImagePatches
from ..text.segments import Segment
from ..text.token_text import special_tokens, token_texts
from ..text.units import unit_ranges

FIELDS = ("task", "target", "rationale", "sources")  # that a record may have besides its prompt and `id`


class EvaluatedText(NamedTuple):
    """A prompt and its continuation, of one row.

    Attributes:
        sequences: Token ids, `[1, S]`.
        prompt_length: `P`.
        fixed: True for prompt positions that are never perturbed, `[P]`.
        sources: The number of the source of each prompt token, `[P]`; -1 for fixed ones, and for those of no source. Sources
            are the record's, or else the sentences.
        rationale: True for prompt tokens that people marked, `[P]`; None if the record has no marks.
        continuation: The text after the prompt.
        seconds: How long writing it took; None if the record has it.
    """

    sequences: Tensor
    prompt_length: int
    fixed: Tensor
    sources: Tensor
    rationale: Tensor | None
    continuation: str
    seconds: float | None

    @property
    def attention_mask(self) -> Tensor:
        """`[1, S]`: all of it is text, also what comes after an end-of-sequence token."""
        return torch.ones_like(self.sequences)


def read_text(
    explainer: GradELLM, prompt: Prompt, perturb_special_tokens: bool, generate_kwargs: Mapping[str, Any]
) -> EvaluatedText:
    """The text of a record: its prompt, and its `target` or what the model writes.

    Raises:
        InvalidInputError: The prompt or a field of the record is not usable, or the model wrote nothing.
    """
    tokenizer = text_tokenizer(explainer.tokenizer)
    rendered, add_special_tokens, ids = encode_prompt(tokenizer, prompt.content)
    device, seconds = input_device(explainer.model), None
    target = prompt.fields.get("target")
    if target is None:
        input_ids = torch.tensor([ids], device=device)
        start = time.perf_counter()
        out = explainer.model.generate(input_ids, attention_mask=torch.ones_like(input_ids), **generate_kwargs)
        seconds = time.perf_counter() - start
        sequences = out if isinstance(out, Tensor) else out.sequences
        if len(sequences) != 1:
            raise InvalidInputError("An evaluation looks at one continuation of each prompt; leave num_return_sequences out.")
        continuation_ids = sequences[0, len(ids) :].tolist()
    else:
        if not isinstance(target, str) or not target:
            raise InvalidInputError(f"The record's `target` must be a text, got {target!r}.")
        continuation_ids = encode_target(tokenizer, rendered, add_special_tokens, ids, target)
    if not continuation_ids:
        raise InvalidInputError("The model wrote nothing after the prompt.")
    pieces = token_texts(tokenizer, [*ids, *continuation_ids])
    special = special_tokens(tokenizer, ids)
    fixed = torch.zeros(len(ids), dtype=torch.bool) if perturb_special_tokens else torch.tensor(special)
    read = _Prompt(pieces[: len(ids)], len(ids), special)
    return EvaluatedText(
        torch.tensor([[*ids, *continuation_ids]], device=device),
        len(ids),
        fixed,
        _sources(read, prompt).masked_fill(fixed, -1),
        _rationale(read, prompt),
        "".join(pieces[len(ids) :]),
        seconds,
    )


class _Prompt(NamedTuple):
    tokens: list[str]
    prompt_length: int
    special: list[bool]
    text: str = ""  # nothing is written yet
    segments: list[Segment] | None = None
    images: list[ImagePatches] | None = None


def _sources(read: _Prompt, prompt: Prompt) -> Tensor:
    spans = _spans(read, prompt, "sources")
    if spans is None:
        sizes = [end - start for start, end in unit_ranges(read, "sentence")]
        return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    sources = torch.full((read.prompt_length,), -1)
    for number, span in reversed(list(enumerate(spans))):  # of a token in two of them, the first has it
        sources[token_labels(read.tokens, [span])] = number
    return sources


def _rationale(read: _Prompt, prompt: Prompt) -> Tensor | None:
    spans = _spans(read, prompt, "rationale")
    return None if spans is None else token_labels(read.tokens, spans)


def _spans(read: _Prompt, prompt: Prompt, field: str) -> list[tuple[int, int]] | None:
    """A field's ranges of characters, of the prompt or of the content of a chat's last message, in the prompt as it is read."""
    ranges = prompt.fields.get(field)
    if ranges is None:
        return None
    marked = prompt.content if isinstance(prompt.content, str) else prompt.content[-1]["content"]
    if not isinstance(marked, str):
        raise InvalidInputError(f"A `{field}` refers to a text, but the chat's last message has its content in parts.")
    text = "".join(read.tokens)
    begin = text.rfind(marked)
    if begin < 0:  # a chat template may strip it
        begin = text.rfind(marked.strip())
        begin -= (len(marked) - len(marked.lstrip())) * (begin >= 0)
    if begin < 0:
        raise InvalidInputError(f"The text that the `{field}` refers to is not found in the prompt as the model reads it.")
    if not is_list(ranges) or not all(is_list(pair) and len(pair) == 2 and all(map(is_index, pair)) for pair in ranges):
        raise InvalidInputError(f"The record's `{field}` must be a list of [start, end], got {ranges!r}.")
    spans = [(begin + start, begin + end) for start, end in ranges]
    if any(not 0 <= start - begin < end - begin <= len(marked) for start, end in spans):
        raise InvalidInputError(f"The record's `{field}` {ranges!r} does not lie in its text of {len(marked)} characters.")
    return spans
