"""`python -m benchmarks.app_chat [messages]`: what the app keeps in memory, and how long its explanations take.

It runs what the app's events run, without a browser: questions with documents, answers, their reports. First in chats of five
messages, then in a single chat. Prints as JSON: the resident memory in MB after each ten messages, and the median seconds from
the end of an answer of 64 tokens to its report.
"""

import gc
import json
import statistics
import sys
import time
from types import SimpleNamespace
from typing import Any

from gradellm_hf import GradELLM
from gradellm_hf.app.documents import documents_of
from gradellm_hf.app.engine import Engine
from gradellm_hf.app.handlers import Handlers
from gradellm_hf.app.session import Sessions
from gradellm_hf.app.settings import Settings
from gradellm_hf.demo_model import load_smollm2

from .measuring import resident_memory

_DOCUMENTS = {
    "opening hours": "The museum opens at nine on weekdays. On Sundays it stays closed.",
    "tickets": "A ticket costs twelve euros. Children under ten pay nothing.",
    "cafe": "The cafe on the second floor serves soup and fresh bread.",
}
_QUESTIONS = ("When does the museum open?", "How much does a ticket cost?", "Write a short story about a visit to the cafe.")


class Chat:
    """One user of the app, and the values that its page would hold."""

    def __init__(self, handlers: Handlers, name: str, most_new_tokens: int):
        usual = Settings()
        self._handlers = handlers
        self._request: Any = SimpleNamespace(session_hash=name)
        self._settings = (most_new_tokens, False, usual.temperature, usual.top_p, 0, None, "")

    def ask(self, question: str) -> tuple[float, int]:
        """Has a question answered and explained: seconds from the answer's end to its report, and the answer's tokens."""
        self._handlers.begin(self._request, question, list(_DOCUMENTS), *self._settings)
        for _ in self._handlers.write(self._request):
            pass
        start = time.perf_counter()
        self._handlers.explain(self._request)
        seconds = time.perf_counter() - start
        session = self._handlers.sessions[self._request.session_hash]
        turn = session.turns[-1]
        explanation = session.explanation(turn, self._handlers.engine)
        return seconds, len(explanation.token_ids) - turn.prompt_length

    def clear(self) -> None:
        self._handlers.clear(self._request)


def main(messages: int) -> None:
    handlers = Handlers(Engine(GradELLM(*load_smollm2())), Sessions(documents_of(_DOCUMENTS)))
    short = Chat(handlers, "short chats", 64)
    waits, memory, in_one_chat = [], [], []
    for number in range(messages):
        waits.append(short.ask(_QUESTIONS[number % len(_QUESTIONS)]))
        if number % 5 == 4:
            short.clear()
        if number % 10 == 9:
            memory.append(_resident())
    long = Chat(handlers, "one chat", 16)
    for number in range(messages):
        long.ask(_QUESTIONS[number % len(_QUESTIONS)])
        if number % 10 == 9:
            in_one_chat.append(_resident())
    print(
        json.dumps(
            {
                "resident_in_short_chats": memory,
                "resident_in_one_chat": in_one_chat,
                "seconds_after_64_tokens": statistics.median(seconds for seconds, length in waits if length == 64),
            }
        )
    )


def _resident() -> float:
    gc.collect()
    return resident_memory() / 10**6


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
