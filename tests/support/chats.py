"""A model small enough to chat with in milliseconds, and ways to hold it up or break it."""

import copy
import threading
from typing import Any

from gradellm_hf import GradELLM
from tests.support.small_llama import small_llama
from tests.support.tiny_tokenizers import byte_level_bpe

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def chatting(template: str | None = TEMPLATE) -> GradELLM:
    """A Llama of random weights that never ends by itself, and whose every token has a text."""
    tokenizer = copy.deepcopy(byte_level_bpe())  # which others share
    tokenizer.chat_template = template
    return GradELLM(small_llama(vocab_size=len(tokenizer), max_position_embeddings=512), tokenizer)


class Gate:
    """Lets the first thread that runs the model pass so many times; then it waits for `open`, or fails with an error."""

    def __init__(self, explainer: GradELLM, passes: int, error: BaseException | None = None):
        self.reached, self._opened = threading.Event(), threading.Event()
        self._left, self._error = passes, error
        self._thread: int | None = None
        self._handle = explainer.model.register_forward_pre_hook(self._pass)

    def _pass(self, module: Any, args: Any) -> None:
        if self._thread is None:
            self._thread = threading.get_ident()
        if self._thread != threading.get_ident():
            return
        self._left -= 1
        if self._left < 0 and not self._opened.is_set():
            self.reached.set()
            if self._error is not None:
                raise self._error
            assert self._opened.wait(30)

    def open(self) -> None:
        self._opened.set()

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *error: Any) -> None:
        self.open()
        self._handle.remove()
