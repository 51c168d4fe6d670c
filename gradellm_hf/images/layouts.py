"""Which layout a processor has, by the name of its class or of one that it inherits from."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .families import gemma3, idefics3, internvl, llava, llava_next, pixtral, qwen
from .picture import ReadPicture, framed
from .views import View, boxes_of

Layout = Callable[[ReadPicture], list[View]]

LAYOUTS: dict[str, Layout] = {
    "Gemma3Processor": gemma3.layout,
    "Idefics3Processor": idefics3.layout,
    "InternVLProcessor": internvl.layout,
    "LlavaNextProcessor": llava_next.layout,
    "LlavaProcessor": llava.layout,
    "PixtralProcessor": pixtral.layout,
    "Qwen2VLProcessor": qwen.layout,
    "Qwen2_5_VLProcessor": qwen.layout,
    "Qwen3VLProcessor": qwen.layout,
    "SmolVLMProcessor": idefics3.layout,
}


def boxes_in(reads: list[ReadPicture], num_tokens: int) -> list[Tensor] | None:
    """Where the tokens of each picture of a prompt lie; see `boxes_of`.

    Args:
        reads: The pictures.
        num_tokens: How many tokens stand for them in the prompt.

    Returns:
        None if it is not known: the processor is of a family without a layout, and its pictures are no squares of tokens; or
        the layout gives another number of tokens.
    """
    layout = _layout(reads[0].settings.processor)
    views = [layout(read) if layout else _square(read, num_tokens / len(reads)) for read in reads]
    boxes = [boxes_of(each, read.size) for each, read in zip(views, reads)]
    return boxes if sum(map(len, boxes)) == num_tokens else None


def _layout(processor: Any) -> Layout | None:
    return next((LAYOUTS[kind.__name__] for kind in type(processor).__mro__ if kind.__name__ in LAYOUTS), None)


def _square(read: ReadPicture, num_tokens: float) -> list[View]:
    """The layout of most processors: each picture is one square of tokens. Nothing if it cannot be."""
    side, size = math.isqrt(int(num_tokens)), read.settings.size("size")
    is_resized = "shortest_edge" in size or {"height", "width"} <= size.keys()
    is_single = getattr(read.inputs.get("pixel_values"), "ndim", 0) == 4  # pictures, channels, height, width
    return [View(framed(read), side, side)] if side**2 == num_tokens and is_resized and is_single else []
