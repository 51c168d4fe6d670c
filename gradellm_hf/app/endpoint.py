"""The endpoint for other programs: a question and documents in, an answer and its sources out."""

from typing import Any

from .documents import documents_of, places_of, with_documents
from .engine import Engine
from .messages import as_messages
from .settings import Settings


class Endpoint:
    """Answers a question without a chat around it."""

    def __init__(self, engine: Engine, head_weights: Any = None):
        self._engine, self._head_weights = engine, head_weights

    def ask(
        self, question: str, documents: dict[str, str] | None = None, system: str = "", max_new_tokens: int = 256
    ) -> dict[str, Any]:
        """Answers a question, and says what each sentence of the answer rests on.

        Args:
            question: What is asked.
            documents: Texts by their titles, to answer from.
            system: A system message.
            max_new_tokens: The length of the answer at most.

        Returns:
            `answer`, `model`, and `sources`: for each sentence of the answer its `text`, its place and `sources` with their
            shares. These are the documents and the question or, without documents, the sentences of the question.
        """
        with as_messages():
            found = documents_of(documents)
            settings = Settings(max_new_tokens=max_new_tokens, head_weights=self._head_weights, system=system)
            chat = [{"role": "system", "content": system.strip()}] if system.strip() else []
            answering = self._engine.start([*chat, {"role": "user", "content": with_documents(question, found)}], settings)
            explanation = answering.explanation()
            sources = explanation.sources(places_of(explanation, found) if found else "sentence").to_dict()
            return {"model": self._engine.name, "answer": explanation.answer, "sources": sources["parts"]}
