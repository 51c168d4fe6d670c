"""A prompt with pictures, as a processor reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any

from torch import Tensor

from ..errors import InvalidInputError
from ..text.chats import Chat
from ..text.encoding import rendered, template_writer, text_tokenizer
from ..text.image_patches import ImagePatches
from .layouts import boxes_in
from .picture import ReadPicture
from .settings import Settings


@dataclass(frozen=True)
class PromptImages:
    """The pictures of one prompt, and what the processor made of them and of the text.

    Attributes:
        pictures: PIL images, in order.
        inputs: What the model reads: `input_ids` `[1, P]`, `pixel_values` and so on.
        given: What the processor was called with.
        processor: The processor.
        first: How many pictures of other prompts come before its own, if `inputs` are of several prompts.
    """

    pictures: tuple[Any, ...]
    inputs: Mapping[str, Any]
    given: Mapping[str, Any]
    processor: Any
    first: int = 0

    def patches(self, positions: Sequence[int]) -> list[ImagePatches] | None:
        """The images of the prompt.

        Args:
            positions: Where the tokens are that stand for a part of an image.

        Returns:
            Without boxes if the layout is not known. None if it is not even known which token is of which image.
        """
        sizes = [(picture.height, picture.width) for picture in self.pictures]
        settings = Settings(self.processor, self.given)
        reads = [ReadPicture(size, settings, self.inputs, index) for index, size in enumerate(sizes, start=self.first)]
        boxes = boxes_in(reads, len(positions))
        each = [list(run) for run in _runs(positions)] if boxes is None else _split(positions, [len(x) for x in boxes])
        if len(each) != len(sizes):
            each = [list(positions)]
        if len(each) != len(sizes):
            return None
        known: list[Tensor | None] = [None] * len(sizes) if boxes is None else [*boxes]
        return [ImagePatches(*image) for image in zip(each, sizes, known, self.pictures)]


def read_prompt(
    processor: Any, prompt: str | Chat, pictures: Sequence[Any], options: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[str, bool, PromptImages]:
    """Has a processor read a prompt and the pictures that go in place of its images.

    As processors do it themselves, a chat gets special tokens too, unless its template writes them.

    Args:
        processor: The model's.
        prompt: A text with placeholders, or a chat with images.
        pictures: PIL images, one for each.
        options: For the chat template; see `text.encoding.template_options`.
        given: More arguments for the processor, such as `do_pan_and_scan`.

    Returns:
        The text, whether special tokens are added to it, and what the processor made of it.

    Raises:
        InvalidInputError: As `text.encoding.encode_prompt`, or the processor refuses them: placeholders and pictures differ in
            number, say.
    """
    text = rendered(template_writer(processor), prompt, options, images=True)
    start = text_tokenizer(processor).bos_token
    special_tokens = isinstance(prompt, str) or not (start and text.startswith(start))
    try:
        inputs = processor(
            images=[list(pictures)], text=[text], return_tensors="pt", add_special_tokens=special_tokens, **given
        )
        image_id = getattr(processor, "image_token_id", None)  # which some processors let be missing
        if pictures and image_id is not None and not (inputs["input_ids"] == image_id).any():
            raise ValueError("There is no placeholder in the text.")
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InvalidInputError(
            f"{type(processor).__name__} cannot read the prompt with {len(pictures)} picture(s): {error} In a text, each "
            f"picture has its placeholder, {getattr(processor, 'image_token', '<image>')!r}; a chat has a part "
            '{"type": "image"} for each.'
        ) from error
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    return text, special_tokens, PromptImages(tuple(pictures), tensors, dict(given), processor)


def _runs(positions: Sequence[int]) -> list[list[int]]:
    """Neighbouring positions together."""
    groups = groupby(enumerate(positions), key=lambda place: place[1] - place[0])
    return [[position for _, position in group] for _, group in groups]


def _split(positions: Sequence[int], sizes: list[int]) -> list[list[int]]:
    return [list(positions[start:end]) for start, end in pairwise(accumulate(sizes, initial=0))]
