"""A browser for the tests of pages."""

import pytest

from tests.support.chromium import chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens a page; at the end of the test it must have asked for nothing and complained of nothing."""
    pages, complaints, requests = [], [], []

    def opened(text, **options):
        path = tmp_path / f"{len(pages)}.html"
        path.write_text(text, encoding="utf-8")
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **options})
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: requests.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        if "<gradellm-report>" in text and "srcdoc" not in text:
            page.wait_for_selector("gradellm-report[data-ready]")
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("about:srcdoc", "data:image/"))] == []
