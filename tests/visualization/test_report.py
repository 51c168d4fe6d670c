"""The report without a browser: what is in the file, and that nothing of the text can act there."""

import base64
import json
import re
import zlib
from html import unescape
from html.parser import HTMLParser

import pytest
import torch

from gradellm_hf.visualization import report, snippet
from tests.support.explained import HOSTILE, explanation_of


class Page(HTMLParser):
    """Elements, attributes, and the content of each script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.contents = [], [], {}
        self._open = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs
        self._open = (tag, dict(attrs).get("id"))

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        self.contents[self._open] = self.contents.get(self._open, "") + data

    @property
    def data(self):
        return json.loads(self.contents["script", "data"])


def unpacked(packed, special, prompt_length):
    """The heatmaps that a page holds, `[N, S]`."""
    stored = zlib.decompress(base64.b64decode(packed["scores"]))
    values = iter(torch.frombuffer(bytearray(stored), dtype=torch.int8).tolist())
    heatmaps = torch.zeros(len(packed["scale"]), len(special))
    for step, scale in enumerate(packed["scale"]):
        for i in range(prompt_length + step):
            root = next(values) / packed["levels"]
            heatmaps[step, i] = root * abs(root) * scale[special[i]]
    assert next(values, None) is None
    return heatmaps


@pytest.mark.parametrize("signed", [False, True])
def test_the_page_holds_the_scores_to_within_their_quantisation(signed):
    special = [True, False, False, True, False, False, False]
    explained = explanation_of("abcdefg", 4, special=special, num_layers=2, signed=signed)
    data = Page(report(explained)).data
    assert data["signed"] is signed
    for packed, scores in [
        (data["summed"], explained.attributions),
        *zip(data["layers"], explained.layer_attributions),
    ]:
        shown = unpacked(packed, data["special"], 4)
        for kind in (True, False):  # special tokens do not cost the others their resolution
            columns = torch.tensor([i for i, x in enumerate(special) if x is kind])
            largest = scores[:, columns].abs().amax(1, keepdim=True)
            error = (shown - scores)[:, columns].abs() / largest
            assert error.max() <= 1.001 / packed["levels"]


def test_no_text_of_an_explanation_is_markup():
    explained = explanation_of([*HOSTILE, "a", *HOSTILE], len(HOSTILE) + 1)
    text = report(explained, title="".join(HOSTILE))
    page = Page(text)
    assert page.data["tokens"] == explained.tokens
    assert page.elements.count("script") == 2
    assert page.elements.count("style") == 1
    assert page.elements.count("h1") == 1
    assert text.isascii()
    assert "<!--" not in text


def test_the_page_loads_nothing_and_its_policy_allows_its_own_script_alone():
    text = report(explanation_of("abc", 2))
    page = Page(text)
    assert {"src", "href", "onload", "action"}.isdisjoint(name for name, _ in page.attributes)
    assert {"link", "img", "iframe"}.isdisjoint(page.elements)
    policy = next(value for _, value in page.attributes if value and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"'sha256-", policy)) == 2


def test_units_of_each_level_cover_the_tokens():
    data = Page(report(explanation_of(["I", " eat", " app", "les", ".", " You", " too", "."], 4))).data
    assert [level["name"] for level in data["levels"]] == ["token", "word", "sentence"]
    assert data["levels"][1]["sizes"] == [1, 1, 2, 1, 1, 1, 1]
    assert data["levels"][2]["sizes"] == [4, 1, 3]


def test_tokens_that_share_a_character_are_one_on_the_page():
    explained = explanation_of(["a", "\N{PARTY POPPER}", "", "", "b", "c"], 4)
    data = Page(report(explained)).data
    assert data["tokens"] == ["a", "\N{PARTY POPPER}", "b", "c"]
    shown = unpacked(data["summed"], data["special"], data["promptLength"])
    torch.testing.assert_close(shown[0, 1], explained.attributions[0, 1:4].sum(), rtol=0.02, atol=0)


def test_named_spans_keep_their_names():
    explained = explanation_of(["Rule", ".", " Why", "?", " So"], 4).aggregate({"rule": "Rule."})
    data = Page(report(explained)).data
    assert [level["name"] for level in data["levels"]] == ["span"]
    assert data["names"] == ["rule", None, None]


def test_two_thousand_tokens_stay_under_three_megabytes():
    assert len(report(explanation_of(["token "] * 2000, 1500))) < 3_000_000


def test_a_text_with_nothing_generated_makes_a_page():
    assert Page(report(explanation_of("abc", 3))).data["summed"]["scale"] == []


def test_the_notebook_form_is_an_isolated_frame_without_single_layers():
    explained = explanation_of(HOSTILE, 4, num_layers=2)
    text = snippet(explained)
    frame = dict(Page(text).attributes)
    assert frame["sandbox"] == "allow-scripts"
    assert Page(text).elements == ["iframe"]
    inner = Page(unescape(frame["srcdoc"]) if "&lt;html" in frame["srcdoc"] else frame["srcdoc"])
    assert inner.data["tokens"] == HOSTILE
    assert inner.data["layers"] == []
