"""The app in Chromium, as people use it, with a real model."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gradellm_hf import GradELLM
from gradellm_hf.results.explanation import Explanation
from tests.support.chats import Gate
from tests.support.chromium import IN_CHROMIUM, chromium

pytest.importorskip("gradio")
pytestmark = [*IN_CHROMIUM, pytest.mark.slow]

DOCUMENTS = {
    "opening hours": "The museum opens at nine on weekdays. On Sundays it stays closed.",
    "cafe": "The cafe on the second floor serves soup and fresh bread.",
}
TICKETS = "A ticket costs twelve euros. Children under ten pay nothing."
HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{alert}} </script><script>alert(3)</script>"
#: What above an element would keep it from sticking to the window.
_CLIPPING = """report => {
  const found = [];
  for (let e = report.parentElement; e !== document.body; e = e.parentElement)
    if (getComputedStyle(e).overflow !== "visible") found.push(`${e.tagName} ${e.className}`);
  return found;
}"""
QUESTION = "How much does a ticket cost?"


@pytest.fixture(scope="module")
def gate(smollm2: Any) -> Iterator[Gate]:
    """Before the model, so that a test can look at a page while an answer is being written."""
    gate = Gate(smollm2[0])
    GradELLM(*smollm2).explain("a", max_new_tokens=2)  # from here on, a pass is a token or an explanation
    yield gate
    gate.remove()


@pytest.fixture(scope="module")
def url(smollm2: Any, gate: Gate) -> Iterator[str]:
    from gradellm_hf.app import launch

    documents = {**DOCUMENTS, "hostile": HOSTILE}
    app = launch(GradELLM(*smollm2), documents=documents, system="Answer in one short sentence.", answers_at_once=2, wait=False)
    yield str(app.local_url)
    app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Callable[[], Any]]:
    """Opens the app as another user. In the end, its pages must have asked nobody else and complained of nothing."""
    contexts, complaints, elsewhere = [], [], []

    def opened(width: int = 1440, height: int = 900) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
        page.on(
            "request",
            lambda request: None if request.url.startswith((url, "blob:", "data:")) else elsewhere.append(request.url),
        )
        page.goto(url)
        page.locator("#question textarea").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert elsewhere == []


def ask(page: Any, question: str) -> None:
    page.locator("#question textarea").fill(question)
    page.keyboard.press("Enter")


def report(page: Any, question: str, name: str = "report") -> Any:
    """The report of a question, when it is there."""
    found = page.locator(f"#{name} gradellm-report[data-ready]").filter(has=page.locator("h1", has_text=question))
    found.wait_for()
    return found


def sources(found: Any) -> list[str]:
    return found.locator(".ranking li:not([hidden]) b").all_inner_texts()


def test_a_sentence_of_the_answer_is_pointed_at_and_the_right_document_lights_up(visit: Any, gate: Gate, tmp_path: Any) -> None:
    page = visit()
    page.get_by_label("hostile").uncheck()
    page.get_by_text("Write or paste one").click()
    page.locator("#title input, #title textarea").fill("tickets")
    page.locator("#text textarea").fill(TICKETS)
    page.locator("#add").click()
    page.get_by_label("tickets").wait_for()
    with gate.closed_after(4):
        ask(page, QUESTION)
        assert gate.reached.wait(60)
        page.wait_for_function("document.querySelector('#chat').innerText.includes('A ticket')")  # it streams
        assert page.locator("gradellm-report").count() == 0
    found = report(page, QUESTION)
    found.locator(".answer .tokens span").first.hover()
    assert found.locator(".question").inner_text() == "\u201cA ticket costs twelve euros.\u201d rests on"
    assert sources(found)[0] == "tickets"
    lit = found.locator('.prompt [data-shade="8"]').first
    assert lit.inner_text().startswith("tickets: A ticket costs")
    labels = found.locator(".prompt [data-span]").evaluate_all("all => all.map(e => e.dataset.span)")
    assert labels == ["system", "opening hours", "cafe", "tickets", "question"]

    # The next answer also rests on the earlier turns; a click on the earlier answer shows that one again.
    ask(page, "And for a child?")
    second = report(page, "And for a child?")
    labels = second.locator(".prompt [data-span]").evaluate_all("all => all.map(e => e.dataset.span)")
    assert labels == ["system", "opening hours", "cafe", "tickets", "question 1", "answer 1", "question"]
    page.locator("#chat").get_by_text("A ticket costs twelve euros.").first.click()
    report(page, QUESTION)

    # Without the document.
    page.get_by_role("tab", name="Without a document").click()
    assert page.locator("#left-out input").input_value() == "tickets"
    page.locator("#leave-out").click()
    page.wait_for_function("document.querySelector('#other-answer textarea').value !== ''")
    assert "twelve" not in page.locator("#other-answer textarea").input_value()
    page.get_by_role("tab", name="What it rests on").click()
    found = report(page, QUESTION)
    assert "without \u201ctickets" in found.locator(".measured").inner_text()

    # Why not another word?
    page.get_by_role("tab", name="Why not").click()
    page.locator("#written-word input").click()
    page.get_by_role("option", name="twelve").click()
    page.locator("#foil input, #foil textarea").fill("ten")
    page.locator("#why-not").click()
    contrast = report(page, QUESTION, "contrast")
    assert contrast.locator(".question").inner_text() == "Why \u201ctwelve\u201d rather than \u201cten\u201d?"

    # Files.
    page.get_by_role("tab", name="Export").click()
    page.locator("#export").click()
    with page.expect_download() as download:
        page.locator("#files a[download]").nth(1).click()
    download.value.save_as(tmp_path / "explanation.safetensors")
    assert Explanation.load(tmp_path / "explanation.safetensors").answer == "A ticket costs twelve euros."


def test_the_stop_button_ends_an_answer_and_what_there_is_is_explained(visit: Any, gate: Gate) -> None:
    page = visit()
    page.get_by_label("hostile").wait_for()
    with gate.closed_after(3):
        ask(page, f"Tell a long story. {HOSTILE}")
        assert gate.reached.wait(60)
        page.locator("#question .stop-button").click()
        page.wait_for_timeout(500)
    found = report(page, "Tell a long story.")
    assert HOSTILE in page.locator("#chat").inner_text()
    facts = found.locator(".facts").inner_text()
    assert "3 generated" in facts or "4 generated" in facts
    ask(page, "Good day!")
    report(page, "Good day!")


def test_two_users_at_once_do_not_wait_for_each_other_and_keep_their_chats(visit: Any, gate: Gate) -> None:
    first, second = visit(), visit()
    with gate.closed_after(3):
        ask(first, "What does the cafe serve?")
        assert gate.reached.wait(60)
        ask(second, "When does the museum open?")
        report(second, "When does the museum open?")
        assert first.locator("gradellm-report").count() == 0
    report(first, "What does the cafe serve?")
    assert "cafe serve" not in second.locator("#chat").inner_text()
    assert "museum open" not in first.locator("#chat").inner_text()


def test_a_page_that_is_closed_ends_its_answer_and_others_go_on(visit: Any, gate: Gate) -> None:
    page = visit()
    with gate.closed_after(3):
        ask(page, "Tell a long story.")
        assert gate.reached.wait(60)
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "answer"]
        page.context.close()
        time.sleep(3)
    started = time.monotonic()
    thread.join(60)
    assert not thread.is_alive()
    print(f"the generation ended {time.monotonic() - started:.1f} s later")
    other = visit()
    ask(other, "When does the museum open?")
    report(other, "When does the museum open?")


def test_on_a_phone_the_answer_stays_in_view_and_nothing_is_cut_off(visit: Any) -> None:
    page = visit(390, 844)
    ask(page, "When does the museum open?")
    found = report(page, "When does the museum open?")
    found.locator(".prompt").evaluate("e => e.scrollIntoView()")
    clipped = found.evaluate(_CLIPPING)
    assert clipped == []
    card = found.locator("aside").bounding_box()
    assert card["y"] > 844 / 2
    assert card["y"] + card["height"] <= 844
    assert found.locator(".levels").evaluate("e => e.getBoundingClientRect().right") <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_errors_are_messages_and_the_page_stays_usable(visit: Any, gate: Gate) -> None:
    page = visit()
    with gate.closed_after(2, RuntimeError("the device is gone")):
        ask(page, "Tell a long story.")
        page.get_by_text("the device is gone").wait_for()
    ask(page, "When does the museum open?")
    report(page, "When does the museum open?")
