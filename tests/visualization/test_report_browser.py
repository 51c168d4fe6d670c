"""The report in Chromium, as a person uses it."""

import shutil

import pytest

from gradellm_hf.visualization import report, snippet
from tests.support.explained import HOSTILE, explanation_of

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(_CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"),
]

TOKENS = ["<s>", "One", " apple", ".", " Two", " pea", "rs", ".", "\n", " Three", " fi", "gs", ".", "</s>"]
SPECIAL = [token.startswith("<") for token in TOKENS]
PROMPT_LENGTH = 9


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=_CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens a page; at the end of the test it must have asked for nothing and complained of nothing."""
    pages, complaints, requests = [], [], []

    def opened(text, **options):
        path = tmp_path / f"{len(pages)}.html"
        path.write_text(text, encoding="utf-8")
        page = browser.new_page(viewport={"width": 1200, "height": 800}, **options)
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: requests.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        if "srcdoc" not in text:
            page.wait_for_selector("body[data-ready]")
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("about:srcdoc")] == []


@pytest.fixture
def explained():
    return explanation_of(TOKENS, PROMPT_LENGTH, special=SPECIAL, num_layers=2)


@pytest.fixture
def page(open_page, explained):
    return open_page(report(explained, title="A title"))


def unit(page, u):
    return page.locator(f'#text [data-unit="{u}"]').first


def shades(page):
    """Shade of each unit that has one."""
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#text [data-shade]')].map(e => [e.dataset.unit, +e.dataset.shade]))"
    )


def strongest(page):
    return [
        int(u) for u in page.eval_on_selector_all("#ranking li:not([hidden]) button", "all => all.map(e => e.dataset.source)")
    ]


def chosen(page):
    units = page.eval_on_selector_all("#text .chosen", "all => all.map(e => Number(e.dataset.unit))")
    return sorted(set(units))


def ranked(scores, leave_out=()):
    order = scores.argsort(descending=True).tolist()
    return [i for i in order if scores[i] > 0 and i not in leave_out][:10]


def test_pointing_at_a_generated_token_shades_what_it_rests_on(page, explained):
    unit(page, 11).hover()
    assert chosen(page) == [11]
    expected = ranked(explained.attributions[2], leave_out=[0])
    assert strongest(page)[:3] == expected[:3]
    shaded = shades(page)
    assert shaded[str(expected[0])] == max(shaded.values()) == 8
    assert all(int(u) < 11 for u in shaded)
    assert page.locator("#tip").inner_text().startswith("probability 55 %")


def test_a_click_pins_and_escape_or_a_second_click_unpins(page):
    unit(page, 10).click()
    unit(page, 12).hover()
    assert chosen(page) == [10]
    assert unit(page, 10).get_attribute("aria-pressed") == "true"
    assert page.locator("#status").inner_text().startswith("Pinned. fi rests on:")
    page.keyboard.press("Escape")
    unit(page, 11).hover()
    assert chosen(page) == [11]
    unit(page, 10).click()
    unit(page, 10).click()
    unit(page, 12).hover()
    assert chosen(page) == [12]


def test_a_prompt_token_shows_which_generated_tokens_it_fed(page, explained):
    unit(page, 2).click()
    scores = explained.attributions[:, 1:].abs()
    share = explained.attributions[:, 2] / scores.sum(1)
    order = [PROMPT_LENGTH + n for n in share.argsort(descending=True).tolist() if not SPECIAL[PROMPT_LENGTH + n]]
    listed = [u for u in strongest(page) if not SPECIAL[u]]
    assert listed == order
    assert all(int(u) >= PROMPT_LENGTH for u in shades(page))


def test_what_a_generated_token_fed_is_shown_on_request(page):
    unit(page, 9).click()
    page.get_by_role("button", name="What it fed").click()
    assert set(strongest(page)) <= {10, 11, 12, 13}
    assert chosen(page) == [9]


@pytest.mark.parametrize("how", ["drag", "shift-click", "shift-arrow"])
def test_a_range_of_generated_tokens_shows_their_sum(page, explained, how):
    if how == "drag":
        unit(page, 10).hover()
        page.mouse.down()
        unit(page, 11).hover()
        unit(page, 12).hover()
        page.mouse.up()
    elif how == "shift-click":
        unit(page, 12).click()
        unit(page, 10).click(modifiers=["Shift"])
    else:
        unit(page, 10).focus()
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowRight")
    assert chosen(page) == [10, 11, 12]
    total = explained.attributions[1:4].sum(0)
    total[10:] = 0
    assert strongest(page)[:3] == ranked(total, leave_out=[0])[:3]
    share = total / total[1:].sum()
    assert page.locator("#ranking output").first.inner_text() == f"{100 * share[1:].max():.0f} %"


def test_words_and_sentences_add_their_tokens_up(page, explained):
    page.get_by_text("Words", exact=True).click()
    words = explained.aggregate("word")
    position = words.tokens.index(" figs")
    unit(page, position).hover()
    assert chosen(page) == [position]
    scores = words.attributions[position - words.prompt_length].clone()
    scores[position:] = 0
    assert strongest(page)[:3] == ranked(scores, leave_out=[0])[:3]
    page.get_by_text("Sentences", exact=True).click()
    sentences = explained.aggregate("sentence")
    assert page.locator("#prompt [role=button]").count() == sentences.prompt_length


def test_a_pinned_token_stays_pinned_in_its_word(page, explained):
    unit(page, 11).click()
    page.get_by_text("Words", exact=True).click()
    assert page.locator("#subject").inner_text() == "figs"
    assert chosen(page) == [explained.aggregate("word").tokens.index(" figs")]


def test_special_tokens_are_hidden_and_uncounted_until_asked_for(page, explained):
    assert not unit(page, 0).is_visible()
    unit(page, 9).click()
    assert 0 not in strongest(page)
    assert "Hidden special tokens hold" in page.locator("#left-out").inner_text()
    page.get_by_label("Hide special tokens").uncheck()
    assert unit(page, 0).is_visible()
    assert strongest(page)[0] == ranked(explained.attributions[0])[0] == 0


def test_logarithmic_shading_shows_weak_sources(page):
    unit(page, 12).click()
    linear = shades(page)
    page.get_by_text("Log", exact=True).click()
    log = shades(page)
    assert len(log) > len(linear)
    assert all(log[u] >= linear[u] for u in linear)


def test_a_layer_shows_its_own_scores(page, explained):
    unit(page, 12).click()
    page.get_by_label("Layer").select_option("1")
    from playwright.sync_api import expect

    strongest_source = page.locator("#ranking button").first
    for layer, scores in (("1", explained.layer_attributions[1, 3]), ("all", explained.attributions[3])):
        page.get_by_label("Layer").select_option(layer)
        # Not `wait_for_function`: it evaluates text once more while it waits, which the page's policy forbids.
        expect(strongest_source).to_have_attribute("data-source", str(ranked(scores, [0])[0]))


def test_the_keyboard_reaches_everything(page):
    focused = "Number(document.activeElement.dataset.unit)"
    assert page.locator('#text [tabindex="0"]').count() == 1
    unit(page, 9).focus()
    for key, expected in [
        ("ArrowRight", 10),
        ("End", 12),
        ("Home", 9),
        ("ArrowLeft", 8),
        ("Home", 1),
        ("End", 8),
        ("ArrowRight", 9),
    ]:
        page.keyboard.press(key)
        assert page.evaluate(focused) == expected
    assert page.locator('#text [tabindex="0"]').count() == 1
    page.keyboard.press("ArrowRight")
    assert chosen(page) == [10]
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    assert chosen(page) == [10]
    page.keyboard.press("Escape")
    assert page.locator("#unpin").is_hidden()
    assert unit(page, 11).get_attribute("aria-label") == "gs, generated, probability 55 %"


def test_hostile_text_is_shown_and_does_nothing(open_page):
    page = open_page(report(explanation_of([*HOSTILE[:-1], "a", *HOSTILE[:-1]], len(HOSTILE)), title="".join(HOSTILE)))
    text = page.locator("#prompt").inner_text()
    assert "</script><script>alert(1)</script><!--" in text
    assert "[U+2028]\u241b[2J[U+202E]abc&amp;" in text
    assert page.locator("script").count() == 2


def test_right_to_left_text_runs_from_the_right_and_line_breaks_are_real(open_page):
    page = open_page(report(explanation_of(["مرحبا", " بكم", "\n", "Hello", "\n\n", "أهلا", " بك"], 5)))
    directions = page.eval_on_selector_all("#text p[dir]", "all => all.map(e => getComputedStyle(e).direction)")
    assert directions == ["rtl", "ltr", "ltr", "rtl"]
    unit(page, 5).focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("Number(document.activeElement.dataset.unit)") == 6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_against_every_shade(open_page, scheme):
    page = open_page(report(explanation_of("abcdef", 3, signed=True)), color_scheme=scheme)
    ratios = page.evaluate(
        """() => {
          const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
          const luminance = color => {
            context.fillStyle = color;
            context.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map(x => x / 255)
              .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const span = document.querySelector("#prompt span");
          const result = {};
          for (const shade of [1, 2, 3, 4, 5, 6, 7, 8, -1, -2, -3, -4, -5, -6, -7, -8]) {
            span.dataset.shade = shade;
            const style = getComputedStyle(span);
            const [a, b] = [luminance(style.color), luminance(style.backgroundColor)].sort((x, y) => y - x);
            result[shade] = (a + 0.05) / (b + 0.05);
          }
          return result;
        }"""
    )
    assert {shade: ratio for shade, ratio in ratios.items() if ratio < 4.5} == {}


def test_two_thousand_tokens_open_within_two_seconds_and_stay_smooth(open_page):
    words = [f" word{i % 97}" if i % 40 else "\n" for i in range(2000)]
    text = report(explanation_of(words, 1500))
    assert len(text) < 3_000_000
    page = open_page(text)
    opened = page.evaluate("performance.getEntriesByName('ready')[0].startTime")
    assert opened < 2000
    # The time of shading anew, layout included; the median of many, so that one hiccup does not count.
    update = page.evaluate(
        """() => {
          const times = [];
          for (let u = 1901; u < 1932; u++) {
            const start = performance.now();
            document.querySelector(`[data-unit="${u}"]`).dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
            document.body.offsetHeight;
            times.push(performance.now() - start);
          }
          return times.sort((a, b) => a - b)[15];
        }"""
    )
    print(f"opened in {opened:.0f} ms, shaded anew in {update:.1f} ms")
    assert chosen(page) == [1931]
    assert update < 100


def test_several_explanations_work_in_one_notebook(open_page, explained):
    page = open_page(snippet(explained) + snippet(explanation_of("xyz", 2)))
    for frame, u in zip(page.frames[1:], (11, 2)):
        frame.wait_for_selector("body[data-ready]")
        unit(frame, u).click()
        assert chosen(frame) == [u]
    assert chosen(page.frames[1]) == [11]
    assert page.evaluate("document.querySelector('iframe').contentDocument") is None
