"""Starting the app."""

from collections.abc import Mapping
from typing import Any

from ..checks.arguments import whole_number
from ..model import GradELLM
from ..visualization import report_script
from .documents import documents_of
from .engine import Engine
from .layout import layout
from .needed import gr
from .settings import MOST_NEW_TOKENS

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")
#: Reports stand on the page, without a frame; what sticks to the window there must not be cut off.
_STYLE = """
.gradio-container, .gradio-container :has(gradellm-report) { overflow: visible !important }
#report, #contrast { padding: 0 }
#chat .message-content { white-space: pre-wrap }
gradellm-report { --page: var(--body-background-fill) }
"""


def launch(
    explainer: GradELLM,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    documents: Mapping[str, str] | None = None,
    system: str = "",
    head_weights: Any = None,
    most_new_tokens: int = MOST_NEW_TOKENS,
    answers_at_once: int = 1,
    most_waiting: int = 64,
    open_browser: bool = False,
    wait: bool = True,
) -> gr.Blocks:
    """Starts the app: a chat with the model in the browser, whose answers say what they rest on.

    It needs no network, and sends nothing anywhere.

    Args:
        explainer: The model, with its tokenizer.
        host: The address to listen at. By default, only this machine reaches it.
        port: Its port; None: the first free one from 7860 on.
        share: Have Gradio make a public link to it. This needs a network.
        documents: Texts by their titles that every chat begins with.
        system: The system message that every chat begins with.
        head_weights: What `GradELLMConfig` takes as such, for every explanation.
        most_new_tokens: The length of an answer at most, in tokens.
        answers_at_once: Answers that are written at the same time; others wait in a queue.
        most_waiting: Requests that may wait; more are turned away.
        open_browser: Open the page.
        wait: Return only when the app is stopped, by Ctrl-C.

    Returns:
        The app: its address is `local_url`, and `close()` ends it.

    Raises:
        MissingDependencyError: Gradio is not installed.
        InvalidInputError: There is no tokenizer, or an argument is not usable.
        OSError: The port is taken.

    Examples:
        >>> app = launch(GradELLM(model, tokenizer), documents={"tickets": "A ticket costs twelve euros."}, wait=False)
        >>> app.local_url
        'http://127.0.0.1:...'
        >>> app.close(verbose=False)
    """
    limits = {"answers_at_once": answers_at_once, "most_waiting": most_waiting, "most_new_tokens": most_new_tokens}
    for name, value in limits.items():
        whole_number(name, value, 1)
    app = layout(
        Engine(explainer, most_new_tokens),
        documents=documents_of(documents),
        head_weights=head_weights,
        system=system,
        answers_at_once=answers_at_once,
    )
    app.queue(max_size=most_waiting)
    app.launch(
        server_name=host,
        server_port=port,
        share=share,
        inbrowser=open_browser,
        prevent_thread_lock=not wait,
        quiet=not wait,
        show_error=True,
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size="16mb",
        theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONO),
        head=f"<style>{_STYLE}</style><script>{report_script()}</script>",
    )
    return app
