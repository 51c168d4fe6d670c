"""A small model and prompts to evaluate methods on."""

import copy
from typing import Any

from tests.support.dataset_job import tiny_llama
from tests.support.tiny_tokenizers import byte_level_bpe

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] | trim }}\n{% endfor %}"
PROMPTS = [
    {"id": "a", "task": "first", "prompt": "the old king of a small land", "rationale": [[4, 7], [16, 21]]},
    {"id": "b", "task": "second", "prompt": "one day to find what"},
    {"id": "c", "task": "first", "prompt": "his people had lost in winter", "target": " and came home"},
    {"id": "d", "task": "second", "prompt": "by the sea"},
]


def model_and_tokenizer() -> tuple[Any, Any]:
    tokenizer = copy.deepcopy(byte_level_bpe())  # which others share
    tokenizer.chat_template = TEMPLATE
    return tiny_llama(), tokenizer
