"""Documents in a chat: how they stand in the prompt, and where they and the messages are in an explained text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from ..errors import InvalidInputError
from ..results.explanation import Explanation
from ..text.segments import Segment
from ..text.token_text import is_unicode

Places = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Document:
    """A text that the answer may rest on, and the name that it is listed by."""

    title: str
    text: str

    @property
    def shown(self) -> str:
        """How it stands in the prompt."""
        return f"{self.title}: {self.text}"


def documents_of(given: Mapping[str, Any] | None) -> list[Document]:
    """The documents `{title: text}`, without those that are empty.

    Raises:
        InvalidInputError: It is no such mapping.
    """
    if given is None:
        return []
    if not isinstance(given, Mapping) or not all(isinstance(x, str) and is_unicode(x) for pair in given.items() for x in pair):
        raise InvalidInputError(f"Documents are a mapping of titles to texts, {{title: text}}, got {given!r}.")
    return with_document_of((), given.items())


def with_document_of(documents: Iterable[Document], more: Iterable[tuple[str, str]]) -> list[Document]:
    """The documents and more of them, given as titles and texts. Titles that are there already are numbered."""
    found = list(documents)
    for title, text in more:
        if text.strip():
            taken = [document.title for document in found]
            found.append(Document(unique(" ".join(title.split()) or "document", taken), text.strip()))
    return found


def with_documents(question: str, documents: Sequence[Document]) -> str:
    """The first message of a chat: the documents, then the question."""
    if not documents:
        return question
    return "\n\n".join([*(document.shown for document in documents), f"Question: {question}"])


def places_of(explanation: Explanation, documents: Sequence[Document]) -> Places:
    """Where the documents and the messages are, `{name: (start, end)}` in characters of `explanation.text`.

    A document that a tokenizer has changed beyond its white space is not found, and counts as part of its message. Without
    segments (see `Explanation`), only documents are known.
    """
    end = sum(map(len, explanation.tokens[: explanation.prompt_length]))
    segments = explanation.segments or []
    asked = next((segment for segment in segments if segment["role"] == "user"), None)
    start, stop = (0, end) if asked is None else (asked["start"], asked["end"])
    found: Places = {}
    for document in documents:
        pattern = r"\s+".join(map(regex.escape, document.shown.split()))
        match = regex.compile(pattern).search(explanation.text, start, stop)
        if match is not None:
            found[document.title] = match.span()
            start = match.end()
    for segment, name in zip(segments, _names(segments)):
        first = start if segment is asked else segment["start"]
        text = explanation.text[first : segment["end"]]
        if text.strip():
            found[unique(name, found)] = (first + len(text) - len(text.lstrip()), segment["end"])
    return dict(sorted(found.items(), key=lambda place: place[1]))


def _names(segments: Sequence[Segment]) -> list[str]:
    """What the messages are called: earlier ones are numbered."""
    questions = sum(segment["role"] == "user" for segment in segments)
    seen = {"user": 0, "assistant": 0}
    names = []
    for segment in segments:
        role = segment["role"]
        seen[role] = seen.get(role, 0) + 1
        if role == "user":
            names.append("question" if seen[role] == questions else f"question {seen[role]}")
        elif role == "assistant":
            names.append("answer so far" if seen[role] == questions else f"answer {seen[role]}")
        else:
            names.append(role)
    return names


def unique(name: str, taken: Iterable[str]) -> str:
    """The name, with a number if it is taken."""
    taken, number, found = set(taken), 1, name
    while found in taken:
        number += 1
        found = f"{name} ({number})"
    return found
