"""Text that already exists, as sequences for the engines (teacher forcing)."""

from typing import Any

import torch
from torch import Tensor

from ..architecture.facts import ModelFacts
from ..checks.arguments import binary_mask, is_index
from ..errors import InvalidInputError
from .explained import ExplainedSequences, extended_prompt
from .positions import PositionRoom
from .prompt_checks import ID_DTYPES, check_left_padding, check_vocabulary, describe, placeholder_mask
from .row_ends import eos_token_ids, until_padding


def given_sequences(
    facts: ModelFacts, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None
) -> ExplainedSequences:
    """Text that already exists, as sequences for the engines. Arguments and errors as for `explain_sequences`."""
    _check_sequences(facts, sequences, prompt_length, attention_mask)
    prompt_length = int(prompt_length)
    with torch.inference_mode(False):
        sequences = sequences.long()  # indices of 32 bits are not taken by every version of PyTorch
        mask = None if attention_mask is None else binary_mask("attention_mask", attention_mask).to(sequences.device)
        padding = None if mask is None else mask[:, :prompt_length].long()
        check_left_padding(padding, prompt_length)
        if mask is not None and mask.shape[1] == sequences.shape[1]:
            step_mask = mask[:, prompt_length:]
            _check_rows_end_once(step_mask)
        else:
            ends = eos_token_ids(facts.model.generation_config.eos_token_id)
            configs = (facts.model.generation_config, facts.model.config.get_text_config(decoder=True))
            pads = [config.pad_token_id for config in configs if getattr(config, "pad_token_id", None) is not None]
            step_mask = until_padding(sequences[:, prompt_length:], ends, pads)
    longest = prompt_length
    if padding is not None and "position_ids" in facts.parameters:  # padding takes no position
        longest = int(padding.sum(-1).max())
    PositionRoom(facts, longest).check(step_mask.shape[1])
    return extended_prompt(sequences, prompt_length, sequences.shape[1] - prompt_length, step_mask, padding)


def _check_sequences(facts: ModelFacts, sequences: Any, prompt_length: int, attention_mask: Any) -> None:
    if not isinstance(sequences, Tensor) or sequences.ndim != 2 or sequences.dtype not in ID_DTYPES:
        raise InvalidInputError(f"`sequences` must be token ids of shape [R, S] (int64), got {describe(sequences)}.")
    rows, length = sequences.shape
    if rows == 0:
        raise InvalidInputError("`sequences` has no rows; expected token ids of shape [R, S] with R of at least 1.")
    if not is_index(prompt_length) or not 1 <= prompt_length <= length:
        raise InvalidInputError(f"`prompt_length` must be an int from 1 to S = {length}, got {prompt_length!r}.")
    check_vocabulary("`sequences`", facts, sequences)
    placeholders = placeholder_mask(facts, sequences[:, :prompt_length])
    if placeholders is not None and bool(placeholders.any()):
        raise InvalidInputError(
            "The prompts hold images, videos or sounds, which `explain_sequences` does not take. Use `explain_generate`."
        )
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor) or attention_mask.shape not in ((rows, length), (rows, prompt_length)):
        got = list(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise InvalidInputError(
            f"`attention_mask` must have shape [R, S] = {[rows, length]} or [R, P] = {[rows, prompt_length]}, got {got}."
        )


def _check_rows_end_once(step_mask: Tensor) -> None:
    rows = (step_mask.int().diff(dim=1) > 0).any(1).nonzero().flatten().tolist()
    if rows:
        raise InvalidInputError(
            f"In the continuation of row(s) {rows}, `attention_mask` has a 1 behind a 0. There, 0 marks what comes after a "
            "row's end, which only more of it can follow. Put the 0s at the end."
        )
