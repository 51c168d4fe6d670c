"""Heatmaps over the pictures of a prompt."""

from typing import Any

import regex
import torch
from torch import Tensor

from ..checks.arguments import is_index, is_list, whole_number
from ..errors import InvalidInputError
from ..text.image_patches import ImagePatches
from ..text.owners import owners
from ..text.readable import Readable, explained_rows


def image_of(explanation: Readable, image: int) -> ImagePatches:
    """An image of the prompt.

    Raises:
        InvalidInputError: There is no such image.
    """
    images = explanation.images
    if not images:
        raise InvalidInputError(
            "The explanation knows no images. They are known for prompts that `GradELLM.explain`, or the pipeline, read with "
            "the model's processor."
        )
    number = whole_number("image", image)
    if not -len(images) <= number < len(images):
        raise InvalidInputError(f"There is no image {number}: the prompt has {len(images)}, from 0 on.")
    return images[number]


def spread_scores(explanation: Readable, image: int, part: Any) -> Tensor:
    """See `Explanation.image_heatmap`."""
    patches = image_of(explanation, image)
    return patches.spread(explanation.attributions[rows_of(explanation, part)][:, patches.positions].sum(0))


def rows_of(explanation: Readable, part: Any) -> list[int]:
    """The explained generated units of a part of the answer; see `Explanation.image_heatmap`.

    Raises:
        InvalidInputError: There is no such part, or none of it is explained.
    """
    border, known = explanation.prompt_length, explained_rows(explanation)
    num_steps = len(explanation.tokens) - border
    if part is None:
        rows = known
    elif is_index(part):
        if not -num_steps <= part < num_steps:
            raise InvalidInputError(f"There is no step {part}: the answer has {num_steps}.")
        rows = [part % num_steps] if part % num_steps in known else []
    else:
        inside = [i is not None for i in owners(explanation, [_characters(explanation, part)])][border:]
        rows = [row for row in known if inside[row]]
    if not rows:
        raise InvalidInputError(f"No token of the part {part!r} is explained.")
    return rows


def _characters(explanation: Readable, part: Any) -> tuple[int, int]:
    """Where a part of the answer is in the text, from character to character."""
    start, length = sum(map(len, explanation.tokens[: explanation.prompt_length])), len(explanation.text)
    if isinstance(part, str):
        found = [match.start() for match in regex.finditer(regex.escape(part), explanation.text, pos=start)] if part else []
        if len(found) == 1:
            return found[0], found[0] + len(part)
        raise InvalidInputError(
            f"{part!r} is {len(found)} times in the answer. Give a text that is there once, or (start, end)."
        )
    span = (part.start, part.end) if hasattr(part, "start") and hasattr(part, "end") else part
    if is_list(span) and len(span) == 2 and all(map(is_index, span)) and start <= span[0] < span[1] <= length:
        return int(span[0]), int(span[1])
    raise InvalidInputError(
        "`part` must be a step, a part of `sources`, a text of the answer or a pair (start, end) of character offsets in "
        f"`text`, {start} <= start < end <= {length}; got {part!r}."
    )


def without_special(special: list[bool], images: list[ImagePatches]) -> list[bool]:
    """Which tokens are special, when those that stand for a part of an image are not."""
    found = torch.tensor(special, dtype=torch.bool)
    for image in images:
        found[image.positions] = False
    return found.tolist()
