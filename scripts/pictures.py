"""Pictures of answers in docs/images/: `python -m scripts.pictures` explains the example of docs/rag.md, also in the app,
and that of docs/images.md.

It needs Chromium, playwright, and Gradio.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gradellm_hf import Explanation, GradELLM
from gradellm_hf.demo_model import load_smollm2
from gradellm_hf.results.removals import Removals
from tests.support.pictures import square_on_grey
from tests.support.planted_pictures import SIZE, planted_chat, square, taught
from tests.support.tiny_processors import without_mixing

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
DOCUMENTS = {
    "opening hours": "The museum opens at nine on weekdays. On Sundays it stays closed.",
    "tickets": "A ticket costs twelve euros. Children under ten pay nothing.",
    "cafe": "The cafe on the second floor serves soup and fresh bread.",
}
QUESTION = "How much does a ticket cost?"
SYSTEM = "Answer in one short sentence."


def explained(explainer: GradELLM) -> tuple[Explanation, Removals]:
    """The answer to the question, and what it loses without the document that it rests on."""
    chat = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "\n\n".join(DOCUMENTS.values()) + "\n\nQuestion: " + QUESTION},
    ]
    explanation = explainer.explain(chat, max_new_tokens=24, do_sample=False)
    return explanation, explainer.removal_test(explanation, DOCUMENTS, of="answer")


def draw(explanation: Explanation, removals: Removals) -> None:
    """Writes sources.png, documents beside the words of the answer; and the report, report.png, and dark and by documents."""
    explanation.sources(DOCUMENTS, of="word").plot(IMAGES / "sources.png")
    with TemporaryDirectory() as folder, chromium() as browser:
        page_file = Path(folder) / "report.html"
        explanation.to_html(page_file, title=QUESTION, spans=DOCUMENTS, removals=removals)
        for scheme, level, name in (("light", "Words", "report"), ("dark", "Documents", "report_dark")):
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
            page.goto(page_file.as_uri())
            page.wait_for_selector("gradellm-report[data-ready]")
            page.get_by_text(level, exact=True).click()
            page.mouse.move(0, 0)
            page.screenshot(path=IMAGES / f"{name}.png")


def draw_app(explainer: GradELLM) -> None:
    """Writes app.png: the app, with a sentence of the second answer pointed at."""
    from gradellm_hf.app import launch

    app = launch(explainer, documents=DOCUMENTS, system=SYSTEM, wait=False)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
        page.set_default_timeout(120_000)
        page.goto(str(app.local_url))
        for question in (QUESTION, "What does the cafe serve?"):
            page.locator("#question textarea").fill(question)
            page.keyboard.press("Enter")
            page.locator("gradellm-report[data-ready] h1", has_text=question).wait_for()
        page.locator("gradellm-report .answer .tokens span").first.hover()
        page.screenshot(path=IMAGES / "app.png")
    app.close()


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def draw_seen() -> None:
    """Writes seen.png: which part of a picture a tiny model names the colour of."""
    model, processor = taught("qwen2_vl")
    picture = square_on_grey(SIZE, square(6), "green").resize((256, 256), resample=0)
    with without_mixing(model):
        explanation = GradELLM(model, processor).explain(planted_chat(picture), " green")
    explanation.plot_image(IMAGES / "seen.png", title=f'Colour? "{explanation.answer}"', dpi=80)


if __name__ == "__main__":
    smollm2 = GradELLM(*load_smollm2())
    draw_seen()
    draw(*explained(smollm2))
    draw_app(smollm2)
    print("Wrote seen.png, sources.png, report.png, report_dark.png and app.png to docs/images/")
