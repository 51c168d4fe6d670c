"""Tokenizers of each kind, trained on a few lines in milliseconds, and text that is hard on them."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<unk>"]
HARD_TEXTS = {
    "plain": "The capital of Italy is Rome, isn't it? It costs 3.14 euros.",
    "emoji": "family 👩‍👩‍👧‍👦 thumbs 👍🏽👍🏿 flag 🇩🇪🇫🇷 keycap 1️⃣ 😀😀😀 end",
    "combining marks": "cafe\u0301 e\u0302\u0323 Z\u0351\u036b\u0343 a\u030a n\u0303o",
    "chinese": "我喜欢北京。你呢?我也是!龘靐齉",
    "japanese": "これはペンです。東京タワー",
    "arabic": "مرحبًا بالعالم، كيف حالك؟ أنا بخير.",
    "hindi": "नमस्ते दुनिया। क्षत्रिय",
    "persian": "می‌خواهم بروم",
    "code": "def f(x):\n\t\treturn x  # two  spaces\n\n    y = [1,\t2]\r\n",
    "spaces": "   leading,   inner   and trailing   ",
    "special inside": "a</s>b <|im_start|>user\nhi<|im_start|> there </s></s>",
    "replacement character": "a \ufffd b \ufffd\ufffd😀",
    "before punctuation": "Hello , world ! do n't I 'm  . . .",
    "one letter": "x",
    "astral": "\U0001d518\U0001d52b\U0001d526 𓀀𓂀 \U0010fffd",
}
_LINES = ["The capital of Italy is Rome and the capital of France is Paris."] * 3 + list(HARD_TEXTS.values())[:5]


def _wrapped(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>", **options
    )
    wrapped.padding_side = "left"
    return wrapped


@cache
def byte_level_bpe() -> PreTrainedTokenizerFast:
    """As GPT-2's: tokens are bytes, so few characters beyond ASCII are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(_LINES, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    return _wrapped(tokenizer)


@cache
def byte_fallback_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space is put before the text, spaces are ▁, unknown characters are tokens such as <0xE2>."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>"], limit_alphabet=30, show_progress=False)
    trained.train_from_iterator(_LINES[:3], trainer)
    model = json.loads(trained.to_str())["model"]
    byte_tokens = {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE({**model["vocab"], **byte_tokens}, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(tokenizer)


@cache
def metaspace_unigram() -> PreTrainedTokenizerFast:
    """As those of T5 and XGLM: a unigram model on pieces that begin with ▁; characters that it does not know are lost."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(_LINES, trainer)
    return _wrapped(tokenizer)


@cache
def sentencepiece_model() -> PreTrainedTokenizerFast:
    """A file that the real SentencePiece library trained, with byte fallback, read by Transformers' Llama tokenizer."""
    import sentencepiece
    from transformers import LlamaTokenizer

    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "tokenizer")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_LINES * 3),
            model_prefix=prefix,
            model_type="bpe",
            vocab_size=360,
            byte_fallback=True,
            character_coverage=0.98,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
        return LlamaTokenizer.from_pretrained(folder, vocab_file=f"{prefix}.model", legacy=False)


KINDS = {
    "byte-level BPE": byte_level_bpe,
    "BPE with byte fallback": byte_fallback_bpe,
    "unigram with metaspace": metaspace_unigram,
    "SentencePiece": sentencepiece_model,
}
