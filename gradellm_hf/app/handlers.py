"""What happens when something is clicked: from Gradio's events to the session and the engine, and back."""

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..configuration import HeadWeights
from ..errors import InvalidInputError
from ..results.explanation import Explanation
from ..visualization import report_data
from .engine import Engine
from .messages import as_messages
from .needed import gr
from .session import Session, Sessions, Turn, places_in
from .settings import Settings


class Handlers:
    """The functions of the layout's events; `request` names the session. All return values for components, in their order."""

    def __init__(self, engine: Engine, sessions: Sessions, head_weights: Any = None):
        self.engine, self.sessions, self.head_weights = engine, sessions, head_weights
        self._exports = Path(tempfile.mkdtemp(prefix="gradellm-app-"))
        weakref.finalize(self, shutil.rmtree, self._exports, ignore_errors=True)  # goes with the app

    def _session(self, request: gr.Request) -> Session:
        return self.sessions[str(request.session_hash)]

    # ---- Documents

    def add_text(self, request: gr.Request, title: str, text: str, chosen: list[str]) -> tuple[Any, str, str]:
        with as_messages():
            session = self._session(request)
            session.add(title, text)
            return _choices(session, [*chosen, session.documents[-1].title]), "", ""

    def add_files(self, request: gr.Request, files: list[str], chosen: list[str]) -> Any:
        with as_messages():
            session, before = self._session(request), list(chosen)
            for file in files:
                session.add(Path(file).name, _text_of(Path(file)))
                before.append(session.documents[-1].title)
            return _choices(session, before)

    def remove(self, request: gr.Request, chosen: list[str]) -> Any:
        session = self._session(request)
        if all(document.title in chosen for document in session.documents):
            gr.Info("Take the mark of a document away to remove it.")
        session.remove([document.title for document in session.documents if document.title not in chosen])
        return _choices(session)

    # ---- Asking

    def begin(self, request: gr.Request, question: str, titles: list[str], *settings: Any) -> tuple[Any, Any]:
        """Takes the question in at once; `write` follows."""
        with as_messages():
            session = self._session(request)
            session.ask(question, titles, self._settings(*settings))
            return gr.Textbox(value="", submit_btn=False, stop_btn=True), _messages(session)

    def write(self, request: gr.Request) -> Iterator[list[dict[str, str]]]:
        session = self._session(request)
        turns = len(session.turns)
        with as_messages():
            for _ in session.write(self.engine):
                yield _messages(session)
        if len(session.turns) < turns:
            gr.Info("Nothing was written.")

    def stop(self, request: gr.Request) -> None:
        self._session(request).stop()

    def written(self) -> Any:
        """The answer has ended, in whatever way: the next question may come."""
        return gr.Textbox(submit_btn=True, stop_btn=False)

    def clear(self, request: gr.Request) -> tuple[Any, ...]:
        self._session(request).clear()
        return [], *_nothing()

    def close(self, request: gr.Request) -> None:
        self.sessions.close(str(request.session_hash))
        shutil.rmtree(self._own_folder(request), ignore_errors=True)

    def _settings(
        self, most: float, sample: bool, temperature: float, top_p: float, layers: float, weights: str | None, system: str
    ) -> Settings:
        return Settings(
            max_new_tokens=int(most),
            do_sample=sample,
            temperature=temperature,
            top_p=top_p,
            last_layers=int(layers),
            head_weights=self.head_weights if weights is None else HeadWeights.load(weights),
            system=system,
        )

    # ---- What an answer rests on

    def explain(self, request: gr.Request) -> tuple[Any, ...]:
        """When an answer has ended: waits for its explanation."""
        with as_messages():
            session = self._session(request)
            turn = session.explained()
            return self._shown(session, turn) if turn is not None else tuple(gr.skip() for _ in _nothing())

    def show(self, request: gr.Request, event: gr.SelectData) -> tuple[Any, ...]:
        """When a message is clicked."""
        with as_messages():
            session, index = self._session(request), event.index
            number = (index[0] if isinstance(index, list | tuple) else index) // 2
            session.shown = session.turns[number]
            return self._shown(session, session.shown)

    def _shown(self, session: Session, turn: Turn) -> tuple[Any, ...]:
        explanation = session.explanation(turn, self.engine)
        titles = [document.title for document in turn.documents]
        words = _words(explanation)
        return (
            _report(turn, explanation),
            gr.Dropdown(choices=titles, value=_strongest(turn, explanation)),
            gr.Dropdown(choices=words, value=words[0][1] if words else None),
            None,
            "",
            None,
        )

    def without(self, request: gr.Request, title: str | None) -> tuple[Any, str]:
        with as_messages():
            session = self._session(request)
            turn = _looked_at(session)
            if not title:
                raise InvalidInputError("Choose a document. An answer without documents has none to leave out.")
            removals, answer = session.without(turn, title, self.engine)
            report = _report(turn, session.explanation(turn, self.engine), removals=removals)
            return report, answer

    def why_not(self, request: gr.Request, begin: int | None, foil: str) -> Any:
        with as_messages():
            turn = _looked_at(self._session(request))
            contrast = self.engine.contrast(turn.chat, turn.answer, begin or 0, foil, turn.settings)
            return _report(turn, contrast, opening="sentence")

    def export(self, request: gr.Request) -> list[str]:
        """The shown explanation as a page, as scores and as JSON."""
        with as_messages():
            session = self._session(request)
            turn = _looked_at(session)
            explanation = session.explanation(turn, self.engine)
            folder = self._own_folder(request)
            folder.mkdir(parents=True, exist_ok=True)
            page, scores, values = (folder / f"explanation.{kind}" for kind in ("html", "safetensors", "json"))
            explanation.to_html(
                page, title=turn.question, spans=places_in(turn, explanation), opening=_opening(turn, explanation)
            )
            explanation.save(scores)
            values.write_text(explanation.to_json(), encoding="utf-8")
            return [str(page), str(scores), str(values)]

    def _own_folder(self, request: gr.Request) -> Path:
        return self._exports / "".join(filter(str.isalnum, str(request.session_hash)))


def _choices(session: Session, chosen: Sequence[str] | None = None) -> Any:
    titles = [document.title for document in session.documents]
    return gr.CheckboxGroup(choices=titles, value=titles if chosen is None else list(chosen))


def _messages(session: Session) -> list[dict[str, str]]:
    """The chat as plain text: markup in an answer could have the browser fetch something from anywhere."""
    return [
        {"role": role, "content": escape(text, quote=False)}
        for turn in session.turns
        for role, text in (("user", turn.question), ("assistant", turn.answer))
        if text
    ]


def _nothing() -> tuple[Any, ...]:
    """The values of what shows an explanation when there is none."""
    return None, gr.Dropdown(choices=[], value=None), gr.Dropdown(choices=[], value=None), None, "", None


def _looked_at(session: Session) -> Turn:
    if session.shown is None:
        raise InvalidInputError("There is no explained answer yet. Ask something first.")
    return session.shown


def _report(turn: Turn, explanation: Explanation, *, opening: str | None = None, **options: Any) -> str:
    opening = opening or _opening(turn, explanation)
    return report_data(explanation, title=turn.question, spans=places_in(turn, explanation), opening=opening, **options)


def _opening(turn: Turn, explanation: Explanation) -> str:
    if turn.documents:
        return "span"
    return "message" if len(explanation.segments or []) > 1 else "sentence"


def _strongest(turn: Turn, explanation: Explanation) -> str | None:
    """The document that the answer rests on most."""
    titles = [document.title for document in turn.documents]
    places = places_in(turn, explanation)
    parts = explanation.sources(places, of="answer") if places else []
    names = [source.name for part in parts for source in part.sources]
    return next((name for name in names if name in titles), titles[0] if titles else None)


def _words(explanation: Explanation) -> list[tuple[str, int]]:
    """The words of the answer, and where they begin in it."""
    border, tokens = explanation.prompt_length, explanation.tokens
    start = sum(map(len, tokens[:border]))
    skipped = len(explanation.text[start:]) - len(explanation.text[start:].lstrip())
    found, at = [], -skipped
    for first, last in explanation.units("word"):
        if first >= border:
            text = "".join(tokens[first:last])
            if text.strip() and not all(explanation.special[first:last]):
                found.append((f"{text.strip()}", at + len(text) - len(text.lstrip())))
            at += len(text)
    return found


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{file.name} is no text in UTF-8. Save it as plain text (UTF-8) first.") from error
