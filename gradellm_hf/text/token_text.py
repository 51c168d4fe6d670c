"""The text of each token: pieces that join to the decoded text, whatever the tokenizer."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from ..errors import InvalidInputError

_CHUNK = 24  # tokens decoded together: fewer are hardly faster (18 against 21 us per token), 64 take twice as long
_LONGEST = 96  # a run of bytes that are no text is cut after so many tokens: four chunks, since time grows with its square
_INCOMPLETE = "\ufffd"  # what decoders write for a character that lacks bytes


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """Splits decoded text into one piece per token, special tokens included.

    The pieces come from decoding longer and longer stretches of the ids, so nothing is assumed about how a vocabulary marks
    spaces or bytes. Stretches are short and overlap, so the time is linear. A character whose bytes are in several tokens
    belongs to the first of them; the others get the rest of their text, often `""`.

    Args:
        tokenizer: A Transformers tokenizer, or a processor that has one.
        token_ids: `S` token ids.

    Returns:
        `S` strings. Joined, they are `tokenizer.decode(token_ids)` without clean-up of spaces (bytes that are not valid
        UTF-8 may give another number of replacement characters).

    Raises:
        InvalidInputError: It is no tokenizer.
    """
    decode = _decoder(tokenizer)
    ids = list(token_ids)
    pieces: list[str] = []
    context = begin = 0  # the last token before `begin` that starts with a whole character, so that `begin` is not first
    while begin < len(ids):
        known = decode(ids[context:begin]) if context < begin else ""
        texts: list[str] = []
        end = begin
        while end < len(ids) and (len(texts) < _CHUNK or texts[-1].endswith(_INCOMPLETE)) and len(texts) < _LONGEST:
            end += 1
            texts.append(decode(ids[context:end]))
        text = texts[-1]
        bounds, whole = _boundaries(texts, min(len(known), len(text)))
        pieces += [text[a:b] for a, b in pairwise(bounds)]
        context = begin + max((i for i in range(len(texts)) if whole[i]), default=0)
        begin = end
    return pieces


def is_unicode(text: str) -> bool:
    """Whether it has no lone surrogate: half a character, which no encoding and no tokenizer can write."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def special_tokens(tokenizer: Any, token_ids: Sequence[int]) -> list[bool]:
    """Which tokens are special: end of text, template markers, placeholders."""
    tokenizer = _unwrap(tokenizer)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special.update(i for i, token in added.items() if getattr(token, "special", False))
    return [i in special for i in token_ids]


def _boundaries(texts: list[str], start: int) -> tuple[list[int], list[bool]]:
    """Where tokens begin and end in the last of these texts, and which of them begin with a whole character.

    If a text is not the beginning of the last one, it ends in a character that later tokens complete or change. That
    character belongs to the token that began it.

    Args:
        texts: The text after each token.
        start: The length of the text before the first of them.
    """
    bounds, begins_whole = [start], []
    complete, is_open = start, False
    for text in texts:
        begins_whole.append(not is_open)
        common = _common_prefix(text, texts[-1])
        complete = max(complete, common)
        is_open = common < len(text)
        bounds.append(max(bounds[-1], min(len(texts[-1]), complete + is_open)))
    return bounds, begins_whole


def _common_prefix(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(b))


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    decode = getattr(_unwrap(tokenizer), "decode", None)
    if decode is None:
        raise InvalidInputError(f"A tokenizer is needed to write the tokens as text, got {type(tokenizer).__name__}.")
    return partial(decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _unwrap(tokenizer: Any) -> Any:
    return getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
