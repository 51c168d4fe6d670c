"""A model small enough to chat with in milliseconds, which can be held up, or broken, in the middle."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradellm_hf import GradELLM
from tests.support.small_llama import small_llama
from tests.support.tiny_tokenizers import byte_level_bpe

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def chatting(template: str | None = TEMPLATE) -> tuple[GradELLM, "Gate"]:
    """A Llama of random weights that never ends by itself and whose every token has a text, and the gate before it."""
    tokenizer = copy.deepcopy(byte_level_bpe())  # which others share
    tokenizer.chat_template = template
    explainer = GradELLM(small_llama(vocab_size=len(tokenizer), max_position_embeddings=512), tokenizer)
    gate = Gate(explainer.model)
    explainer.explain("a", max_new_tokens=2)  # a model is looked at once; from here on, a pass is a token or an explanation
    return explainer, gate


class Gate:
    """Lets the next thread that begins to run the model pass so many times; then it waits until the gate is open, or fails."""

    def __init__(self, model: Any):
        self.reached, self._open = threading.Event(), threading.Event()
        self._left, self._error = 0, None
        self._thread: threading.Thread | None = None
        self._before: set[threading.Thread] = set()
        self._open.set()
        self._handle = model.register_forward_pre_hook(self._pass)

    @contextmanager
    def closed_after(self, passes: int, error: BaseException | None = None) -> Iterator["Gate"]:
        self.reached.clear()
        self._left, self._error, self._thread = passes, error, None
        self._before = set(threading.enumerate())  # may still explain what was asked before
        self._open.clear()
        try:
            yield self
        finally:
            self.open()

    def open(self) -> None:
        self._open.set()

    def remove(self) -> None:
        self._handle.remove()

    def _pass(self, module: Any, args: Any) -> None:
        here = threading.current_thread()
        if self._open.is_set() or here in self._before:
            return
        self._thread = self._thread or here
        if self._thread is not here:
            return
        self._left -= 1
        if self._left < 0:
            self.reached.set()
            if self._error is not None:
                raise self._error
            assert self._open.wait(30)
