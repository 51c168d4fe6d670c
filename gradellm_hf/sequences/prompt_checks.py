"""What token ids, masks and embeddings of a prompt must be, before anything runs."""

from typing import Any

import torch
from torch import Tensor

from ..architecture.facts import ModelFacts
from ..errors import InvalidInputError

ID_DTYPES = (torch.int64, torch.int32)


def check_left_padding(mask: Tensor | None, prompt_length: int) -> None:
    """Raises InvalidInputError if the last prompt position of a row is padding."""
    if mask is None or mask.ndim != 2:
        return
    rows = (mask[:, min(prompt_length, mask.shape[1]) - 1] == 0).nonzero().flatten().tolist()
    if rows:
        raise InvalidInputError(
            f"The prompt of row(s) {rows} ends in padding, so there is no last token to predict from. Pad on the left: "
            '`tokenizer.padding_side = "left"`.'
        )


def placeholder_mask(
    facts: ModelFacts, token_ids: Tensor, modalities: tuple[str, ...] = ("image", "video", "audio")
) -> Tensor | None:
    """Which tokens stand for a part of an image, a video or a sound; None for models that do not read any of it."""
    ids = [token_id for modality in modalities for token_id in facts.placeholder_ids.get(modality, ())]
    return torch.isin(token_ids, torch.tensor(ids, device=token_ids.device)) if ids else None


def check_vocabulary(name: str, facts: ModelFacts, token_ids: Tensor, placeholders: Tensor | None = None) -> None:
    """Raises InvalidInputError if a token id is not in the model's vocabulary and is no placeholder (of an image, say)."""
    vocabulary = facts.vocabulary_size
    unknown = (token_ids < 0) | (token_ids >= vocabulary)
    if placeholders is not None:
        unknown &= ~placeholders
    if bool(unknown.any()):
        raise InvalidInputError(
            f"{name} holds the token id {token_ids[unknown][0]}, but the model has {vocabulary} tokens, from 0 to "
            f"{vocabulary - 1}. Use the model's own tokenizer."
        )


def check_mask(mask: Tensor, rows: int, length: int) -> None:
    """Raises InvalidInputError if the mask has other rows than the prompt, or is shorter. It may be longer: the start of the
    prompt may be in a cache."""
    if mask.shape[0] != rows or mask.shape[1] < length:
        raise InvalidInputError(
            f"`attention_mask` must have the shape of the prompt, [batch, P] = {[rows, length]} (and more columns if a "
            f"`cache` holds its start), got {list(mask.shape)}."
        )


def check_dimensions(name: str, value: Any, dimensions: int, expected: str, dtypes: tuple[torch.dtype, ...] = ()) -> None:
    """Raises InvalidInputError unless the value is None, or a tensor with so many dimensions, at least one row and a dtype
    out of `dtypes` (empty: any)."""
    if value is None:
        return
    is_right = isinstance(value, Tensor) and value.ndim == dimensions and value.shape[0] > 0
    if is_right and value.dtype in (dtypes or (value.dtype,)):
        return
    expected += f" ({' or '.join(map(str, dtypes))})" if dtypes else ""
    hint = " Unpack what a tokenizer returns: `explain_generate(model, **inputs)`." if hasattr(value, "keys") else ""
    raise InvalidInputError(f"Expected {name} as {expected}, got {describe(value)}.{hint}")


def describe(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
