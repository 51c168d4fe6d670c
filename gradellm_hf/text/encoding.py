"""From prompts, chats and targets to token ids."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers.utils import get_json_schema

from ..checks.arguments import is_list
from ..errors import InvalidInputError
from .chats import Chat, check_chat, without_pictures
from .token_text import is_unicode, token_texts

#: What may be said to a chat template, in `explain`, `explain_dataset` and on the command line.
TEMPLATE_OPTIONS = ("tools", "documents", "chat_template", "continue_final_message", "enable_thinking")


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, also of a processor.

    Raises:
        InvalidInputError: It is none, or there is none.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    if tokenizer is None:
        raise InvalidInputError(
            "There is no tokenizer to read text with. Give the model's: `GradELLM(model, tokenizer)`, or `tokenizer=...` in "
            "the call that gets the prompts; or give token ids to `generate`."
        )
    if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
        raise InvalidInputError(
            "`tokenizer` must be the model's tokenizer or processor, as AutoTokenizer.from_pretrained loads it, got "
            f"{type(tokenizer).__name__}."
        )
    return tokenizer


def encode_prompt(
    tokenizer: Any, prompt: str | Chat, options: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, bool, list[int]]:
    """The text that the model reads, whether the tokenizer adds special tokens to it, and its token ids.

    Args:
        options: For the chat template; see `template_options`.

    Raises:
        InvalidInputError: It is neither text nor a chat of text, it is empty, holds half a character, or there is no chat
            template.
    """
    text, is_text = rendered(tokenizer, prompt, options), isinstance(prompt, str)
    ids = tokenizer(text, add_special_tokens=is_text)["input_ids"]
    if not text or not ids:
        raise InvalidInputError("The prompt is empty: there is nothing that the model could rest on. Give at least one token.")
    return text, is_text, list(ids)


def template_writer(processor: Any) -> Any:
    """What has the chat template: a processor, or else its tokenizer."""
    return processor if getattr(processor, "chat_template", None) else text_tokenizer(processor)


def rendered(writer: Any, prompt: str | Chat, options: Mapping[str, Any], *, images: bool = False) -> str:
    """The text of a prompt: a chat's by its template, with placeholders for images.

    Args:
        writer: What has the chat template.
        prompt: A text or a chat.
        options: For the chat template; see `template_options`.
        images: Whether a chat may hold images.

    Raises:
        InvalidInputError: As `encode_prompt`.
    """
    if isinstance(prompt, str):
        if options:
            raise InvalidInputError(f"{sorted(options)} are for a chat template, and the prompt is a text. Give a chat.")
        text = str(prompt)
    else:
        given = template_options(writer, prompt, options, images=images)
        chat: Any = without_pictures(prompt) if images else prompt
        text = str(writer.apply_chat_template(chat, tokenize=False, **given))
    _check_unicode("The prompt", text)
    return text


def template_options(tokenizer: Any, chat: Chat, options: Mapping[str, Any], *, images: bool = False) -> dict[str, Any]:
    """All arguments of `apply_chat_template`. A chat that ends in an assistant's message is continued, as the pipeline does.

    Args:
        tokenizer: What has the chat template.
        chat: The chat.
        options: Those of `TEMPLATE_OPTIONS` that are given.
        images: Whether the chat may hold images.

    Raises:
        InvalidInputError: It is no chat of text, there is no chat template, or there is no message to continue.
    """
    check_chat(chat, images=images)
    if not (options.get("chat_template") or getattr(tokenizer, "chat_template", None)):
        raise InvalidInputError(
            "The tokenizer has no chat template, so it cannot write a chat. Give the prompt as one text, or set "
            "`tokenizer.chat_template`."
        )
    continues = options.get("continue_final_message")
    if continues and not chat[-1].get("content"):
        raise InvalidInputError(f"The last message has no content to continue: {dict(chat[-1])!r}.")
    if continues is None:
        continues = chat[-1]["role"] == "assistant" and bool(chat[-1].get("content"))
    given = {**options, "continue_final_message": continues, "add_generation_prompt": not continues}
    for kind in ("tools", "documents"):
        if given.get(kind) is not None and not is_list(given[kind]):
            raise InvalidInputError(f"`{kind}` must be a list, got {given[kind]!r}.")
    if given.get("tools"):
        given["tools"] = [tool if isinstance(tool, Mapping) else get_json_schema(tool) for tool in given["tools"]]
    return given


def encode_target(tokenizer: Any, prompt: str, add_special_tokens: bool, prompt_ids: list[int], target: str) -> list[int]:
    """Token ids that, after those of the prompt, read as `target`.

    A tokenizer may merge the end of the prompt with the beginning of the target, or put a space before a text that stands
    alone. So three ways are tried: the ids of the whole text after the prompt's ids, if it begins with these; the ids of the
    target after a line break; and the ids of the target alone. The first whose text is the target is taken.

    Raises:
        InvalidInputError: The target holds half a character, or the tokenizer has no tokens for it.
    """
    _check_unicode("`target`", target)

    def encode(text: str, special: bool = False) -> list[int]:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])

    candidates = []
    for before, ids in ((prompt, prompt_ids), ("\n", encode("\n"))):
        whole = encode(before + target, add_special_tokens and before is prompt)
        if whole[: len(ids)] == ids:
            candidates.append(whole[len(ids) :])
    candidates.append(encode(target))
    for candidate in candidates:
        if candidate and "".join(token_texts(tokenizer, [*prompt_ids, *candidate])[len(prompt_ids) :]) == target:
            return candidate
    if not candidates[-1]:
        raise InvalidInputError(f"The tokenizer has no tokens for `target` = {target!r}.")
    return candidates[-1]


def _check_unicode(name: str, text: str) -> None:
    if not is_unicode(text):
        raise InvalidInputError(f"{name} holds half a character (a lone surrogate), which no tokenizer reads; got {text!r}.")
