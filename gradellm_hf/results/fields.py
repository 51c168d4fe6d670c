"""Whether the fields of an explanation fit together."""

from typing import Any

import torch
from torch import Tensor

from ..checks.arguments import numbers, whole_number
from ..checks.schema import Natural, TensorKind, check, check_tensors, field_types
from ..configuration import checked_config
from ..errors import InvalidInputError
from ..text.image_patches import Pixels
from ..text.rest import Rest
from .files import TENSORS
from .kept import REST_OF


def checked_fields(explanation: Any) -> dict[str, Any]:
    """The fields that an explanation keeps in one form, whatever it was given: `prompt_length` and the tensors.

    Raises:
        InvalidInputError: Shapes or texts do not fit together, or a score is not finite.
    """
    border = whole_number("prompt_length", explanation.prompt_length, 0)
    this: Any = type(explanation)
    for name, kind in field_types(this).items():
        if name not in (*TENSORS, "prompt_length", "explain_config"):
            check(getattr(explanation, name), kind, f"`{name}`")
    checked_config(explanation.explain_config)
    length = len(explanation.tokens)
    if border > length:
        raise InvalidInputError(f"`prompt_length` is {border}, but there are {length} units.")
    tensors = {
        name: numbers(name, value, "a tensor of numbers").detach().to("cpu", torch.float32)
        for name in TENSORS
        if (value := getattr(explanation, name)) is not None
    }
    for heatmap, name in REST_OF.items():
        if (rest := getattr(explanation, name)) is not None:
            check_rest(name, rest, tensors.get(heatmap), border)
    layers, names = explanation.layers, explanation.layer_names
    sizes, sources = {"S": length, "N": length - border}, {"S": "`tokens`", "N": "`prompt_length`"}
    if layers is not None:
        sizes["L"], sources["L"] = len(layers), "`layers`"
    check_tensors(tensors, TENSORS, sizes, sources)
    if layers is not None and names is not None and len(layers) != len(names):
        raise InvalidInputError(f"`layers` and `layer_names` differ in length: {layers}, {names}.")
    for name in ("token_ids", "special", "unit_names"):
        value = getattr(explanation, name)
        if value is not None and len(value) != length:
            raise InvalidInputError(f"`{name}` must have an entry for each of the {length} units, got {len(value)}.")
    if explanation.explained is not None and len(explanation.explained) != sizes["N"]:
        raise InvalidInputError(
            f"`explained` must have an entry for each of the {sizes['N']} generated units, got {len(explanation.explained)}."
        )
    if "".join(explanation.tokens) != explanation.text:
        raise InvalidInputError("`tokens` do not join to `text`.")
    for segment in explanation.segments or []:
        if not segment["start"] < segment["end"] <= len(explanation.text):
            raise InvalidInputError(
                f"`segments` hold {segment}, which is no stretch of a text of {len(explanation.text)} characters."
            )
    for number, image in enumerate(explanation.images or []):
        _check_image(number, image, border)
    return {"prompt_length": border, **tensors}


def check_rest(name: str, rest: Rest, heatmap: Tensor | None, prompt_length: int) -> None:
    """Whether this may be what is left out of heatmaps `[..., N, S]`.

    Raises:
        InvalidInputError: It is of other heatmaps.
    """
    if heatmap is None:
        raise InvalidInputError(f"`{name}` says what is left out of heatmaps that are not there.")
    *before, num_steps, length = heatmap.shape
    letters = "ABD"[: len(before)]
    sums = TensorKind(letters + "NC", (torch.float32,), (0, torch.inf))
    classes = TensorKind("AS" if rest.classes.ndim > 1 else "S", (torch.uint8,))
    kinds = {"classes": classes, "sums": sums, "largest": sums._replace(optional=True)}
    tensors = {part: x for part in kinds if (x := getattr(rest, part)) is not None}
    try:
        check_tensors(tensors, kinds, {**dict(zip(letters, before)), "N": num_steps, "S": length})
        of_prompt, of_answer = (set(part.flatten().tolist()) for part in rest.classes.tensor_split([prompt_length], -1))
        if max(of_prompt | of_answer, default=-1) >= rest.sums.shape[-1]:
            raise InvalidInputError(f"`classes` are more than the {rest.sums.shape[-1]} of `sums`.")
        if rest.classes.ndim == 1 and of_prompt & of_answer:
            raise InvalidInputError("a class of `classes` has units of the prompt and of the generated text.")
    except InvalidInputError as error:
        raise InvalidInputError(f"`{name}`: {error}") from error


def _check_image(number: int, image: Any, border: int) -> None:
    check(image.positions, list[Natural], f"`images[{number}].positions`")
    check(image.size, tuple[Pixels, Pixels], f"`images[{number}].size`")
    positions, (height, width) = image.positions, image.size
    if not positions or sorted(set(positions)) != positions or positions[-1] >= border:
        raise InvalidInputError(
            f"`images[{number}].positions` must be positions of the prompt, from 0 to {border - 1}, in order and at least one."
        )
    if image.boxes is None:
        return
    check_tensors({"boxes": image.boxes}, {"boxes": TensorKind("TE", (torch.float32,))}, {"T": len(positions), "E": 4})
    left, top, right, bottom = image.boxes.unbind(-1)
    if bool(((left < 0) | (top < 0) | (left > right) | (top > bottom) | (right > width) | (bottom > height)).any()):
        raise InvalidInputError(f"`images[{number}].boxes` must lie in a picture of {height} x {width} pixels.")
