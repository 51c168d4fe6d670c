"""Token ids of several texts, as one batch on the device on which the model reads them."""

import torch
from torch import Tensor

from ..architecture.facts import ModelFacts
from ..errors import InvalidInputError
from .prompt_checks import placeholder_mask


def padded_batch(facts: ModelFacts, rows: list[list[int]], padding: int | None) -> tuple[Tensor, Tensor]:
    """Ids and mask `[R, P]`, padded on the left.

    Raises:
        InvalidInputError: A token is not in the model's vocabulary, or stands for a part of an image, a video or a sound.
    """
    highest, size = max(map(max, rows)), facts.vocabulary_size
    if highest >= size:
        raise InvalidInputError(
            f"The tokenizer gave the token id {highest}, but the model knows {size} tokens. Use the model's own tokenizer."
        )
    placeholders = placeholder_mask(facts, torch.tensor([token_id for row in rows for token_id in row]))
    if placeholders is not None and bool(placeholders.any()):
        raise InvalidInputError(
            "The text holds placeholders of images, videos or sounds, and there is nothing that they stand for. Give what "
            "the model's processor makes of text and images, as tensors, to `explain_generate`."
        )
    width = max(map(len, rows))
    ids = torch.tensor([[padding or 0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(facts.input_device), mask.to(facts.input_device)
