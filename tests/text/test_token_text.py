"""Tokens as pieces of text, for tokenizers of each kind and text that is hard on them."""

import functools
import random

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from gradellm_hf.demo_model import smollm2_folder
from gradellm_hf.results.explanation import Explanation
from gradellm_hf.text.token_text import special_tokens, token_texts
from tests.support.tiny_tokenizers import HARD_TEXTS, KINDS, SPECIAL, byte_fallback_bpe, byte_level_bpe, metaspace_unigram


@functools.cache
def smollm2_tokenizer():
    return AutoTokenizer.from_pretrained(smollm2_folder())


TOKENIZERS = {**KINDS, "SmolLM2": smollm2_tokenizer}
LOSSLESS = ("byte-level BPE", "SmolLM2")
# What each level makes of a text with any tokenizer, if none of its tokens holds a border.
WORDS = {
    "plain": "The| capital| of| Italy| is| Rome|,| isn't| it|?| It| costs| 3.14| euros|.",
    "emoji": "family| 👩‍👩‍👧‍👦| thumbs| 👍🏽|👍🏿| flag| 🇩🇪|🇫🇷| keycap| 1️⃣| 😀|😀|😀| end",
    "combining marks": "cafe\u0301| e\u0302\u0323| Z\u0351\u036b\u0343| a\u030a| n\u0303o",
    "chinese": "我|喜|欢|北|京|。|你|呢|?|我|也|是|!|龘|靐|齉",
    "arabic": "مرحبًا| بالعالم|،| كيف| حالك|؟| أنا| بخير|.",
    "hindi": "नमस्ते| दुनिया|।| क्षत्रिय",
    "persian": HARD_TEXTS["persian"].replace(" ", "| "),
}


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decode(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def explanation_of(tokenizer, ids, prompt_length=1):
    tokens, steps = token_texts(tokenizer, ids), len(ids) - prompt_length
    return Explanation(
        tokens=tokens,
        token_ids=ids,
        prompt_length=prompt_length,
        attributions=torch.zeros(steps, len(ids)),
        token_probabilities=torch.ones(steps),
        text="".join(tokens),
        special=special_tokens(tokenizer, ids),
    )


@pytest.fixture(params=TOKENIZERS)
def kind(request):
    return request.param


@pytest.mark.parametrize("name", HARD_TEXTS)
def test_pieces_join_to_the_text(kind, name):
    tokenizer = TOKENIZERS[kind]()
    ids = encode(tokenizer, HARD_TEXTS[name])
    pieces = token_texts(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == decode(tokenizer, ids)
    if kind in LOSSLESS:
        assert "".join(pieces) == HARD_TEXTS[name]


@pytest.mark.parametrize("name", ["emoji", "combining marks", "chinese", "special inside"])
def test_a_text_that_breaks_off_inside_a_character_joins_too(kind, name):
    tokenizer = TOKENIZERS[kind]()
    ids = encode(tokenizer, HARD_TEXTS[name])
    for length in range(len(ids) + 1):
        pieces, expected = token_texts(tokenizer, ids[:length]), decode(tokenizer, ids[:length])
        assert len(pieces) == length
        # With byte fallback, a byte too few makes the tokenizer give up whole characters before it too; pieces may keep them.
        assert "".join(pieces) == expected or (kind not in LOSSLESS and expected.endswith("\ufffd"))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_bytes_that_are_no_text_join_to_what_the_tokenizer_makes_of_them(kind):
    tokenizer, draw = TOKENIZERS[kind](), random.Random(0)
    for _ in range(60):
        ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(1, 150))]
        assert "".join(token_texts(tokenizer, ids)) == decode(tokenizer, ids)


@pytest.mark.parametrize("text", ["😀" * 90, "龘靐齉" * 60, "e\u0301\u0302" * 50], ids=["emoji", "rare Chinese", "marks"])
def test_long_runs_of_split_characters_stay_whole(kind, text):
    tokenizer = TOKENIZERS[kind]()
    ids = encode(tokenizer, text)
    assert "".join(token_texts(tokenizer, ids)) == decode(tokenizer, ids)


def bytes_of_tokens(tokenizer, ids):
    """The bytes that each token stands for, from the vocabulary."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    if tokenizer is byte_fallback_bpe():
        spaced = [token.replace("▁", " ").encode() for token in tokens]
        return [bytes([int(token[3:5], 16)]) if token.startswith("<0x") else spaced[i] for i, token in enumerate(tokens)]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    assert set(byte_of) == set(pre_tokenizers.ByteLevel.alphabet())
    return [bytes(byte_of[letter] for letter in token) for token in tokens]


@pytest.mark.parametrize("kind", ["byte-level BPE", "BPE with byte fallback", "SmolLM2"])
@pytest.mark.parametrize("name", [name for name in HARD_TEXTS if name != "special inside"])
def test_a_character_belongs_to_the_token_of_its_first_byte(kind, name):
    tokenizer = TOKENIZERS[kind]()
    ids = encode(tokenizer, HARD_TEXTS[name])
    parts = bytes_of_tokens(tokenizer, ids)
    expected = ["".join(letter for letter in _beginning_in(parts, i)) for i in range(len(parts))]
    if tokenizer is byte_fallback_bpe():
        if name == "replacement character":
            pytest.skip("a byte too few is written as that very character")
        expected[0] = expected[0].removeprefix(" ")  # the decoder takes away the space that was put before the text
    assert token_texts(tokenizer, ids) == expected


def _beginning_in(parts, index):
    start = sum(map(len, parts[:index]))
    end, at = start + len(parts[index]), 0
    for letter in b"".join(parts).decode():
        if start <= at < end:
            yield letter
        at += len(letter.encode())


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("kind", ["byte-level BPE", "BPE with byte fallback", "SmolLM2"])
def test_words_are_whole(kind, name):
    tokenizer = TOKENIZERS[kind]()
    ids = encode(tokenizer, HARD_TEXTS[name])
    explanation = explanation_of(tokenizer, ids, prompt_length=len(ids))
    words = explanation.aggregate("word").tokens
    expected = WORDS[name].split("|")
    if _crosses_a_border(explanation.tokens, expected):  # then neighbours are joined, and nothing else
        borders = {sum(map(len, expected[:i])) for i in range(len(expected))}
        assert {sum(map(len, words[:i])) for i in range(len(words))} < borders
    else:
        assert words == expected


def _crosses_a_border(tokens, words):
    starts = {sum(map(len, tokens[:i])) for i in range(len(tokens))}
    return any(sum(map(len, words[:i])) not in starts for i in range(len(words)))


def test_special_tokens_inside_a_text_are_units_of_their_own(kind):
    tokenizer = TOKENIZERS[kind]()
    ids = encode(tokenizer, HARD_TEXTS["special inside"])
    explanation = explanation_of(tokenizer, ids, prompt_length=len(ids))
    assert any(explanation.special)
    for level in ("word", "sentence"):
        units = explanation.units(level)
        for i, is_special in enumerate(explanation.special):
            if is_special:
                assert (i, i + 1) in units


def test_special_tokens_are_told_from_others():
    tokenizer = byte_level_bpe()
    ids = encode(tokenizer, "a</s>b <|im_start|>user")
    texts = [text for text, special in zip(token_texts(tokenizer, ids), special_tokens(tokenizer, ids)) if special]
    assert texts == ["</s>", "<|im_start|>"]
    assert set(texts) < set(SPECIAL)


def test_tokens_of_one_character_are_one_unit(kind):
    tokenizer = TOKENIZERS[kind]()
    ids = encode(tokenizer, "The 👩 龘")
    explanation = explanation_of(tokenizer, ids, prompt_length=len(ids))
    assert all(explanation.aggregate("token").tokens)


def test_an_empty_token_at_the_beginning_belongs_to_the_first_word():
    ids = encode(metaspace_unigram(), "The capital")
    explanation = explanation_of(metaspace_unigram(), ids, prompt_length=len(ids))
    assert explanation.tokens[0] == ""
    assert explanation.aggregate("word").tokens == ["The", " capital"]


class Counting:
    """A tokenizer that counts the ids that it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer_, self.decoded = tokenizer, 0

    def decode(self, ids, **options):
        self.decoded += len(ids)
        return self.tokenizer_.decode(ids, **options)


@pytest.mark.parametrize("text", ["The capital of Italy. ", "龘👩‍👩‍👧 "], ids=["plain", "bytes"])
def test_the_work_grows_with_the_length_not_with_its_square(kind, text):
    tokenizer = TOKENIZERS[kind]()
    ids = (encode(tokenizer, text * 300) * 10)[:4000]
    counting = Counting(tokenizer)
    token_texts(counting, ids)
    assert counting.decoded <= 60 * len(ids)


def test_a_processor_stands_for_its_tokenizer():
    class Processor:
        tokenizer = byte_level_bpe()

    ids = encode(byte_level_bpe(), HARD_TEXTS["emoji"])
    assert token_texts(Processor(), ids) == token_texts(byte_level_bpe(), ids)
    assert special_tokens(Processor(), ids) == special_tokens(byte_level_bpe(), ids)


def test_clean_up_of_spaces_is_not_followed():
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder(), clean_up_tokenization_spaces=True)
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    text = HARD_TEXTS["before punctuation"]
    assert tokenizer.decode(encode(tokenizer, text)) != text
    assert "".join(token_texts(tokenizer, encode(tokenizer, text))) == text
