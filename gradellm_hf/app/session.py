"""The chats of several users: what was asked and answered, and what is known of it. Nothing here knows of Gradio."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidInputError
from ..results.explanation import Explanation
from ..results.removals import Removals
from .documents import Document, Places, places_of, with_document_of, with_documents
from .engine import AbandonedError, Answering, Engine
from .settings import Settings

#: Explanations of a session that are kept; others are computed again when they are asked for.
_KEPT = 4
_SESSIONS = 256
_PAUSE = 0.05  # seconds between two states of a text that is written


@dataclass(eq=False)
class Turn:
    """A question and its answer.

    Attributes:
        question: As the user wrote it.
        chat: What the model was given.
        documents: Those that are in it.
        settings: Of the user, then.
        answer: As far as it is written.
        token_ids, prompt_length: What was explained; None before.
        explanation: None before it is there, and when it is no longer kept.
        problem: Why there is none.
        stopped: Whether the user wants no more of it.
    """

    question: str
    chat: list[dict[str, str]]
    documents: list[Document]
    settings: Settings
    answer: str = ""
    token_ids: list[int] | None = None
    prompt_length: int = 0
    explanation: Explanation | None = None
    problem: str = ""
    stopped: bool = False


@dataclass(eq=False)
class Session:
    """One user's chat and documents.

    Attributes:
        documents: All of them, in the order in which they were added.
        turns: In the order of the chat. The last one may still be written.
        shown: The answer that is looked at.
    """

    documents: list[Document] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    shown: Turn | None = None
    _writing: Turn | None = None
    _answering: Answering | None = None
    _waiting: deque[tuple[Turn, Answering]] = field(default_factory=deque)
    _kept: deque[Turn] = field(default_factory=deque)
    _lock: Any = field(default_factory=threading.RLock)

    # ---- Documents

    def add(self, title: str, text: str) -> None:
        """A document more. Raises InvalidInputError if it is empty."""
        if not text.strip():
            raise InvalidInputError("The document has no text.")
        self.documents = with_document_of(self.documents, [(title, text)])

    def remove(self, titles: Sequence[str]) -> None:
        self.documents = [document for document in self.documents if document.title not in titles]

    # ---- Asking

    def ask(self, question: str, titles: Sequence[str], settings: Settings) -> None:
        """Takes a question in. `titles`: the documents that the model is given.

        Raises:
            InvalidInputError: It is empty, or the answer before it is still being written.
        """
        question = question.strip()
        if not question:
            raise InvalidInputError("Write a question first.")
        with self._lock:
            if self._writing is not None:
                raise InvalidInputError("The answer before is still being written. Wait for its end, or stop it.")
            documents = [document for document in self.documents if document.title in titles]
            chat = _chat([(turn.question, turn.answer) for turn in self.turns], question, documents, settings.system)
            self._writing = Turn(question, chat, documents, settings)
            self.turns.append(self._writing)

    def write(self, engine: Engine) -> Iterator[None]:
        """Has the question answered, and stops now and then while the answer grows. Raises the error that it ends in."""
        with self._lock:
            turn = self._writing
            if turn is None:
                return
            if turn.stopped:  # while it waited for others
                return self._end(turn)
        answering, finished, last = None, False, 0.0
        try:
            answering = engine.start(turn.chat, turn.settings)
            with self._lock:
                if self._writing is not turn:  # the chat was cleared
                    return
                self._answering = answering
                if turn.stopped:
                    answering.stop()
            for text in answering:
                turn.answer = text
                if time.monotonic() - last > _PAUSE:
                    yield
                    last = time.monotonic()
            turn.answer = turn.answer.strip()
            finished = True
        except AbandonedError:
            return
        finally:
            with self._lock:
                if answering is not None and finished and turn.answer and self._writing is turn:
                    self._waiting.append((turn, answering))
                elif answering is not None:
                    answering.abandon()
                self._end(turn)
        yield

    def _end(self, turn: Turn) -> None:
        """The answer is as it will stay. A question without any leaves no trace."""
        with self._lock:
            if self._writing is turn:
                self._writing = self._answering = None
            if not turn.answer and turn in self.turns:
                self.turns.remove(turn)

    def stop(self) -> None:
        """Ends the answer that is being written, or waits to be."""
        with self._lock:
            if self._writing is not None:
                self._writing.stopped = True
            if self._answering is not None:
                self._answering.stop()

    def clear(self) -> None:
        """Begins a new chat, with the same documents. Nobody waits for the old one any more."""
        with self._lock:
            self.stop()
            if self._answering is not None:
                self._answering.abandon()
            self.turns, self.shown, self._writing, self._answering = [], None, None, None
            self._waiting.clear()
            self._kept.clear()

    # ---- Explanations

    def explained(self) -> Turn | None:
        """Waits for the explanation of the next answer that ended; None if there is none to wait for. Raises its error."""
        with self._lock:
            if not self._waiting:
                return None
            turn, answering = self._waiting.popleft()
        try:
            self._keep(turn, answering.explanation())
        except Exception as error:
            turn.problem = str(error)
            raise
        self.shown = turn
        return turn

    def explanation(self, turn: Turn, engine: Engine) -> Explanation:
        """The explanation of an answer; computed again if it is no longer kept.

        Raises:
            InvalidInputError: The answer has none.
        """
        if turn.explanation is None:
            if turn.token_ids is None:
                why = f"could not be explained: {turn.problem}" if turn.problem else "is not explained yet."
                raise InvalidInputError(f"This answer {why}")
            self._keep(turn, engine.explain(turn.chat, turn.token_ids, turn.prompt_length, turn.settings))
        assert turn.explanation is not None
        return turn.explanation

    def _keep(self, turn: Turn, explanation: Explanation) -> None:
        with self._lock:
            turn.explanation = explanation
            turn.token_ids, turn.prompt_length = explanation.token_ids, explanation.prompt_length
            if turn in self._kept:
                self._kept.remove(turn)
            self._kept.append(turn)
            while len(self._kept) > _KEPT:
                self._kept.popleft().explanation = None

    def without(self, turn: Turn, title: str, engine: Engine) -> tuple[Removals, str]:
        """What an answer loses without one of its documents, and what the model writes without it.

        Raises:
            InvalidInputError: The answer has no such document.
        """
        explanation = self.explanation(turn, engine)
        place = places_of(explanation, turn.documents).get(title)
        others = [document for document in turn.documents if document.title != title]
        if place is None or len(others) == len(turn.documents):
            raise InvalidInputError(f"This answer was given no document {title!r}. Choose one of those that it was given.")
        before = self.turns[: self.turns.index(turn)] if turn in self.turns else []
        chat = _chat([(each.question, each.answer) for each in before], turn.question, others, turn.settings.system)
        return engine.removal_test(explanation, title, place), engine.answer(chat, turn.settings)


class Sessions:
    """The sessions by their names. Of very many, those that were used longest ago are closed."""

    def __init__(self, documents: Sequence[Document] = ()):
        self._documents, self._lock = list(documents), threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def __getitem__(self, name: str) -> Session:
        """The session; a new one if there is none of this name."""
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = Session(list(self._documents))
            self._sessions.move_to_end(name)
            found = self._sessions[name]
            old = [self._sessions.popitem(last=False)[1] for _ in range(len(self._sessions) - _SESSIONS)]
        for session in old:
            session.clear()
        return found

    def close(self, name: str) -> None:
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is not None:
            session.clear()


def places_in(turn: Turn, explanation: Explanation) -> Places | None:
    """The documents and messages of an answer that was given documents; None of one that was not."""
    return places_of(explanation, turn.documents) if turn.documents else None


def _chat(before: Sequence[tuple[str, str]], question: str, documents: Sequence[Document], system: str) -> list[dict[str, str]]:
    questions = [*(asked for asked, _ in before), question]
    questions[0] = with_documents(questions[0], documents)
    chat = [{"role": "system", "content": system.strip()}] if system.strip() else []
    for asked, (_, answer) in zip(questions, before):
        chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [*chat, {"role": "user", "content": questions[-1]}]
