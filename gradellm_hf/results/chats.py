"""Prompts as the model reads them; the explanation of a chat knows where its messages are."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import regex
from torch import Tensor

from ..checks.arguments import is_list
from ..checks.schema import short
from ..errors import InvalidInputError
from ..images.pictures import pictures_of
from ..images.prompt import PromptImages, read_prompt
from ..text.chats import Chat, image_parts, is_chat, without_pictures
from ..text.encoding import TEMPLATE_OPTIONS, encode_prompt, template_options, template_writer, text_tokenizer
from ..text.segments import Segment, chat_segments, placed, placed_around
from .explanation import Explanation
from .image_heatmaps import without_special


@dataclass(frozen=True)
class EncodedPrompt:
    """A text or chat, and what the model reads.

    Attributes:
        prompt: As given.
        options: Of the chat template, as given.
        encoded: What `encode_prompt` returned.
        begun: Tokens of an answer that are given too.
        images: What the processor made of it; None if it has no images.
    """

    prompt: str | Chat
    options: Mapping[str, Any]
    encoded: tuple[str, bool, list[int]]
    begun: tuple[int, ...] = ()
    images: PromptImages | None = None

    @property
    def ids(self) -> list[int]:
        """All that the model reads."""
        return [*self.encoded[2], *self.begun]

    def continued(self, token_ids: list[int]) -> "EncodedPrompt":
        """The same with the beginning of an answer."""
        return dataclasses.replace(self, begun=tuple(token_ids))


def encoded_prompts(
    tokenizer: Any,
    prompts: Sequence[str | Chat],
    options: Mapping[str, Any],
    pictures: Sequence[Sequence[Any]] | None = None,
    given: Mapping[str, Any] | None = None,
) -> list[EncodedPrompt]:
    """The prompts as the model reads them.

    Args:
        tokenizer: That of a processor is taken for prompts without images.
        prompts: Texts and chats.
        options: Of `TEMPLATE_OPTIONS`; None if not given.
        pictures: Beside each prompt: those of a text, or of the images of a chat that hold none.
        given: More arguments for the processor, for prompts with images.

    Raises:
        InvalidInputError: As `encode_prompt` and `read_prompt`, or there are images and no processor.
    """
    template = {name: value for name, value in options.items() if value is not None}
    beside = [()] * len(prompts) if pictures is None else pictures
    return [_encoded(tokenizer, prompt, own, template, given or {}) for prompt, own in zip(prompts, beside)]


def _encoded(
    tokenizer: Any, prompt: str | Chat, pictures: Sequence[Any], options: Mapping[str, Any], given: Mapping[str, Any]
) -> EncodedPrompt:
    reads_images = hasattr(tokenizer, "image_processor")
    if pictures and not reads_images:
        raise InvalidInputError(
            "Pictures are read by the model's processor, and there is a tokenizer. Give what AutoProcessor.from_pretrained "
            "loads in its place."
        )
    if not pictures and not (reads_images and is_chat(prompt) and image_parts(prompt)):
        return EncodedPrompt(prompt, options, encode_prompt(text_tokenizer(tokenizer), prompt, options))
    loaded = pictures_of(prompt, pictures)
    text, special_tokens, images = read_prompt(tokenizer, prompt, loaded, options, given)
    ids = images.inputs["input_ids"][0].tolist()
    return EncodedPrompt(prompt, options, (text, special_tokens, ids), images=images)


def of_chats(
    explanations: Sequence[Explanation],
    tokenizer: Any,
    chats: Any,
    options: Mapping[str, Any],
    positions: Sequence[Sequence[int]],
) -> list[Explanation]:
    """The explanations of one or several answers to each chat, which know its messages and images.

    Args:
        explanations: Of the answers.
        tokenizer: The tokenizer, or the processor if there are images.
        chats: The chats.
        options: What the template was given.
        positions: For each explanation, the tokens that stand for a part of an image.

    Raises:
        InvalidInputError: There are not as many chats as prompts, an option is unknown, or a prompt is not what the template
            makes of its chat.
    """
    chats = [chats] if is_chat(chats) else chats
    if not is_list(chats) or not chats or len(explanations) % len(chats):
        raise InvalidInputError(
            f"`chats` must be a list with the chat (or text) of each prompt, and {len(explanations)} rows are explained; got "
            f"{short(chats)}."
        )
    if unknown := sorted(options.keys() - set(TEMPLATE_OPTIONS)):
        raise InvalidInputError(f"A chat template is given {list(TEMPLATE_OPTIONS)}, not {unknown}.")
    each = len(explanations) // len(chats)
    return [
        _of_chat(row, explanation, tokenizer, chats[row // each], options, positions[row])
        for row, explanation in enumerate(explanations)
    ]


def _of_chat(
    row: int,
    explanation: Explanation,
    tokenizer: Any,
    chat: str | Chat,
    options: Mapping[str, Any],
    positions: Sequence[int],
) -> Explanation:
    if isinstance(chat, str):
        return explanation
    (asked,) = encoded_prompts(tokenizer, [chat], options)
    if explanation.token_ids is None or explanation.token_ids[: explanation.prompt_length] != asked.ids:
        raise InvalidInputError(
            f"The prompt of row {row} is not what the template makes of its chat. It begins {explanation.text[:40]!r}; the "
            f"template's {asked.encoded[0][:40]!r}. Give the chats in the order of the prompts, and what the template was "
            "given (`tools`, `chat_template`, ...)."
        )
    return with_prompt(explanation, text_tokenizer(tokenizer), asked, positions)


def image_positions(output: Any, row: int) -> list[int]:
    """Where the prompt of an explanation has tokens that stand for a part of an image. `output`: the row's."""
    if output.image_mask is None:
        return []
    mask: Tensor = output.image_mask[row][output.prompt_mask[row]]
    found: list[int] = mask.nonzero().flatten().tolist()
    return found


def with_prompt(explanation: Explanation, tokenizer: Any, asked: EncodedPrompt, positions: Sequence[int] = ()) -> Explanation:
    """The explanation with the images and messages of the prompt that it is of.

    Args:
        explanation: Of the prompt.
        tokenizer: The tokenizer.
        asked: The prompt.
        positions: Where it has tokens that stand for a part of an image.
    """
    if asked.images is not None and positions:
        images = asked.images.patches(positions)
        special = without_special(explanation.special, images or [])
        explanation = dataclasses.replace(explanation, images=images, special=special)
    return with_segments(explanation, tokenizer, asked)


def with_segments(explanation: Explanation, tokenizer: Any, asked: EncodedPrompt) -> Explanation:
    """The explanation with the messages of the chat that it is of; as it is, if the prompt is a text."""
    prompt, (rendered, *_) = asked.prompt, asked.encoded
    if isinstance(prompt, str):
        return explanation
    border = explanation.prompt_length - len(asked.begun)
    decoded = "".join(explanation.tokens[:border])
    if asked.images is None:
        segments = chat_segments(tokenizer, prompt, rendered, template_options(tokenizer, prompt, asked.options))
        segments = None if segments is None else placed(segments, rendered, decoded)
    else:
        segments = _segments_around(explanation, asked, decoded)
    if segments is not None and (begun := "".join(explanation.tokens[border : explanation.prompt_length])).strip():
        start, end = len(decoded) + len(begun) - len(begun.lstrip()), len(decoded) + len(begun.rstrip())
        segments = [*segments, Segment(name="begun answer", role="assistant", start=start, end=end)]
    return dataclasses.replace(explanation, segments=segments)


def _segments_around(explanation: Explanation, asked: EncodedPrompt, decoded: str) -> list[Segment] | None:
    """The messages of a chat with images, in the text that its processor made longer."""
    images, (rendered, *_) = asked.images, asked.encoded
    if images is None or explanation.images is None or isinstance(asked.prompt, str):
        return None
    writer, chat = template_writer(images.processor), without_pictures(asked.prompt)
    # Gemma 3's stands before what the processor calls `image_token` in early versions of Transformers.
    placeholder = getattr(images.processor, "boi_token", None) or getattr(images.processor, "image_token", None)
    options = template_options(writer, chat, asked.options, images=True)
    segments = chat_segments(writer, chat, rendered, options, placeholder)
    if segments is None or not placeholder:
        return None
    places = [match.span() for match in regex.finditer(regex.escape(placeholder), rendered)]
    bounds = list(accumulate(map(len, explanation.tokens), initial=0))
    inside = [(bounds[image.extent.start], bounds[image.extent.stop]) for image in explanation.images]
    return placed_around(segments, rendered, decoded, places, inside)
