"""Pictures of answers in docs/images/: `python -m scripts.pictures` explains the examples of docs/rag.md and docs/images.md.

It needs Chromium, and playwright.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

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


def explained() -> tuple[Explanation, Removals]:
    """The answer to the question, and what it loses without the document that it rests on."""
    explainer = GradELLM(*load_smollm2())
    chat = [
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": "\n\n".join(DOCUMENTS.values()) + "\n\nQuestion: " + QUESTION},
    ]
    explanation = explainer.explain(chat, max_new_tokens=24, do_sample=False)
    return explanation, explainer.removal_test(explanation, DOCUMENTS, of="answer")


def draw(explanation: Explanation, removals: Removals) -> None:
    """Writes sources.png, documents beside the words of the answer; and the report, report.png, and dark and by documents."""
    from playwright.sync_api import sync_playwright

    explanation.sources(DOCUMENTS, of="word").plot(IMAGES / "sources.png")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page_file = Path(folder) / "report.html"
        explanation.to_html(page_file, title=QUESTION, spans=DOCUMENTS, removals=removals)
        for scheme, level, name in (("light", "Words", "report"), ("dark", "Documents", "report_dark")):
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
            page.goto(page_file.as_uri())
            page.wait_for_selector("gradellm-report[data-ready]")
            page.get_by_text(level, exact=True).click()
            page.mouse.move(0, 0)
            page.screenshot(path=IMAGES / f"{name}.png")
        browser.close()


def draw_seen() -> None:
    """Writes seen.png: which part of a picture a tiny model names the colour of."""
    model, processor = taught("qwen2_vl")
    picture = square_on_grey(SIZE, square(6), "green").resize((256, 256), resample=0)
    with without_mixing(model):
        explanation = GradELLM(model, processor).explain(planted_chat(picture), " green")
    explanation.plot_image(IMAGES / "seen.png", title=f'Colour? "{explanation.answer}"', dpi=80)


if __name__ == "__main__":
    draw_seen()
    draw(*explained())
    print("Wrote seen.png, sources.png, report.png and report_dark.png to docs/images/")
