"""The page: a chat and its documents on the left, what the answer rests on on the right."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from .documents import Document
from .endpoint import Endpoint
from .engine import Engine
from .handlers import Handlers
from .needed import api, gr
from .session import Sessions
from .settings import Settings

_EMPTY = "Ask something. What the answer rests on appears here: point at a sentence of it to see its sources."
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_EXPLAINED_AT_ONCE = 4  # requests that wait for an explanation, or ask for more about one


def layout(
    engine: Engine,
    *,
    documents: Sequence[Document] = (),
    head_weights: Any = None,
    system: str = "",
    answers_at_once: int = 1,
) -> gr.Blocks:
    """The app, ready to be launched; see `launch` for the arguments."""
    handlers = Handlers(engine, Sessions(documents), head_weights)
    app: gr.Blocks = gr.Blocks(
        title=f"{engine.name}: what its answers rest on", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    )
    with app:
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                gr.Markdown(f"### {engine.name}", container=False)
                chat = gr.Chatbot(
                    height="52vh",
                    label="Chat",
                    show_label=False,
                    buttons=[],
                    render_markdown=False,  # and escaped: see `Handlers`
                    elem_id="chat",
                    placeholder="A click on an answer shows what it rests on.",
                )
                question = gr.Textbox(
                    placeholder="Ask a question",
                    show_label=False,
                    label="Question",
                    submit_btn=True,
                    stop_btn=False,
                    max_lines=8,
                    elem_id="question",
                    autofocus=True,
                )
                titles = _documents(handlers, [document.title for document in documents])
                settings = _settings(engine, system)
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                shown = _answer(handlers)
        answers: dict[str, Any] = {"concurrency_id": "answers", "concurrency_limit": answers_at_once}
        explanations: dict[str, Any] = {"concurrency_id": "explanations", "concurrency_limit": _EXPLAINED_AT_ONCE}
        asked = question.submit(handlers.begin, [question, titles, *settings], [question, chat], queue=False, **_PRIVATE)
        written = asked.success(handlers.write, None, chat, **answers, **_PRIVATE)
        written.then(handlers.written, None, question, queue=False, show_progress="hidden", **_PRIVATE)
        written.then(handlers.explain, None, shown, **explanations, **_PRIVATE)
        question.stop(handlers.stop, None, None, queue=False, **_PRIVATE)
        chat.select(handlers.show, None, shown, **explanations, **_PRIVATE)
        chat.clear(handlers.clear, None, [chat, *shown], queue=False, **_PRIVATE)
        app.unload(handlers.close)
        api(Endpoint(engine, head_weights).ask, api_name="ask", **answers)
    return app


def _documents(handlers: Handlers, given: list[str]) -> Any:
    """The pane of the documents; returns what holds the titles of those that are given to the model."""
    with gr.Accordion("Documents", open=True, elem_id="documents"):
        titles = gr.CheckboxGroup(
            given, value=given, show_label=False, label="Documents that the model is given", elem_id="titles"
        )
        with gr.Row():
            more = gr.UploadButton("Add text files", file_count="multiple", file_types=["text"], size="sm")
            remove = gr.Button("Remove those without a mark", size="sm")
        with gr.Accordion("Write or paste one", open=False):
            title = gr.Textbox(label="Title", max_lines=1, elem_id="title")
            text = gr.Textbox(label="Text", lines=3, max_lines=12, elem_id="text")
            add = gr.Button("Add the document", size="sm", elem_id="add")
    add.click(handlers.add_text, [title, text, titles], [titles, title, text], queue=False, **_PRIVATE)
    more.upload(handlers.add_files, [more, titles], titles, queue=False, **_PRIVATE)
    remove.click(handlers.remove, titles, titles, queue=False, **_PRIVATE)
    return titles


def _settings(engine: Engine, system: str) -> list[Any]:
    """The pane of the settings; returns its components in the order of `Handlers.begin`."""
    usual = Settings()
    most = engine.most_new_tokens
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        length = gr.Slider(1, most, min(usual.max_new_tokens, most), step=1, label="Longest answer, in tokens")
        sample = gr.Checkbox(usual.do_sample, label="Sample, rather than take the likeliest token")
        temperature = gr.Slider(0.1, 2, usual.temperature, step=0.1, label="Temperature of sampling")
        top_p = gr.Slider(0.05, 1, usual.top_p, step=0.05, label="Top p of sampling")
        layers = gr.Slider(0, engine.num_layers, 0, step=1, label="Explain so many of the last layers (0: all)")
        weights = gr.File(label="Head weights, as gradellm calibrate writes them", file_types=[".safetensors"], height=90)
        instruction = gr.Textbox(system, label="System message", lines=2, max_lines=6)
    return [length, sample, temperature, top_p, layers, weights, instruction]


def _answer(handlers: Handlers) -> list[Any]:
    """The tabs on an explained answer; returns their components in the order of `Handlers.explain`."""
    explanations: dict[str, Any] = {"concurrency_id": "explanations", "concurrency_limit": _EXPLAINED_AT_ONCE}
    with gr.Tab("What it rests on"):
        report = _report("report", _EMPTY)
    with gr.Tab("Without a document"):
        title = gr.Dropdown([], label="Answer the question without this document", elem_id="left-out")
        leave_out = gr.Button("Answer without it", elem_id="leave-out")
        answer = gr.Textbox(label="What the model writes without it", interactive=False, lines=3, elem_id="other-answer")
        gr.Markdown(
            "What the answer above loses without the document is measured, too: under *What it rests on*, below the list."
        )
    with gr.Tab("Why not \u2026?"):
        with gr.Row():
            word = gr.Dropdown([], label="Instead of", elem_id="written-word")
            foil = gr.Textbox(label="why not", placeholder="another word", max_lines=1, elem_id="foil")
        ask = gr.Button("Explain", elem_id="why-not")
        contrast = _report("contrast", "Negative shares speak for what you name, positive ones for what was written.")
    with gr.Tab("Export"):
        export = gr.Button("Make files of the explanation", elem_id="export")
        made = gr.File(label="Page, scores and JSON", file_count="multiple", interactive=False, elem_id="files")
    leave_out.click(handlers.without, title, [report, answer], **explanations, **_PRIVATE)
    gr.on([ask.click, foil.submit], handlers.why_not, [word, foil], contrast, **explanations, **_PRIVATE)
    export.click(handlers.export, None, made, **explanations, **_PRIVATE)
    return [report, title, word, contrast, answer, made]


def _report(name: str, empty: str) -> gr.HTML:
    """Shows what `report_data` returns, by the report's own component."""
    script = (files(__package__) / "web" / "report.js").read_text(encoding="utf-8")
    return gr.HTML(html_template="", js_on_load=script, apply_default_css=False, elem_id=name, empty=empty)
