"""The report without a browser: what is in the file, and that nothing of the text can act there."""

import base64
import dataclasses
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from itertools import accumulate

import pytest
import torch

from gradellm_hf import InvalidInputError
from gradellm_hf.results.explanation import Explanation
from gradellm_hf.text.segments import Segment
from gradellm_hf.visualization import report, snippet
from tests.support.explained import HOSTILE, explanation_of, fruit, fruit_without, long_explanation


class Page(HTMLParser):
    """Elements, attributes, and the data of each report of the page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.all_data = [], [], []
        self._is_data = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs
        self._is_data = ("type", "application/json") in attrs

    def handle_endtag(self, tag):
        self._is_data = False

    def handle_data(self, data):
        if self._is_data:
            self.all_data.append(json.loads(data))

    @property
    def data(self):
        (data,) = self.all_data
        return data


def unpacked(data, stored):
    """The heatmap that a page holds, `[N, S]`, by the description in `packed`, one number after the other."""
    raw = zlib.decompress(base64.b64decode(stored["scores"]))
    num_kinds, length, border = len(data["kinds"]), len(data["tokens"]), data["promptLength"]
    num_steps = length - border
    scale = struct.unpack_from(f"<{num_steps * num_kinds}f", raw)
    places = [(step, i) for step in range(num_steps) for i in range(border + step + data["own"])]
    bits, values = raw[8 * len(scale) :], iter(raw[8 * len(scale) + -(-len(places) // 8) :])
    heatmap = torch.zeros(num_steps, length)
    for k, (step, i) in enumerate(places):
        if bits[k // 8] & 1 << k % 8:
            value = next(values)
            value -= 256 * (value > 127)
            heatmap[step, i] = value / stored["levels"] * scale[step * num_kinds + data["classes"][i]]
    assert next(values, None) is None
    return heatmap


def as_shown(data):
    """An explanation with the scores of the page in place of the exact ones."""
    return Explanation(
        tokens=data["tokens"],
        token_ids=list(range(len(data["tokens"]))),
        prompt_length=data["promptLength"],
        attributions=unpacked(data, data["summed"]),
        token_probabilities=torch.tensor(data["probabilities"]),
        text="".join(data["tokens"]),
        special=[data["kinds"][kind] == "special" for kind in data["classes"]],
    )


@pytest.mark.parametrize("signed", [False, True])
def test_the_page_holds_the_scores_to_within_their_quantisation(signed):
    special = [True, False, False, True, False, False, False]
    explained = explanation_of("abcdefg", 4, special=special, num_layers=2, signed=signed)
    data = Page(report(explained)).data
    assert data["signed"] is signed
    for stored, scores, weak in [
        (data["summed"], explained.attributions, 0.01),
        *zip(data["layers"], explained.layer_attributions, [0.05, 0.05]),
    ]:
        shown = unpacked(data, stored)
        for kind in range(len(data["kinds"])):  # special tokens do not cost the others their resolution
            columns = [i for i, x in enumerate(data["classes"]) if x == kind]
            size = scores[:, columns].abs()
            relative = size / size.amax(1, keepdim=True).clamp_min(1e-9)
            error = (shown - scores)[:, columns].abs() / size.amax(1, keepdim=True).clamp_min(1e-9)
            assert error[relative >= 0.2].max() <= 0.501 / stored["levels"]
            is_weak = (relative >= weak) & (relative < 0.2)
            assert shown[:, columns][is_weak].ne(0).all()
            assert shown[:, columns][relative < weak].eq(0).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("by", ["token", "sentence", {"first": (0, 40), "second": (60, 120)}])
def test_the_shares_of_the_page_are_those_of_sources(signed, by):
    words = [" word" if i % 9 else " end." for i in range(90)]
    for seed in range(4):
        explained = explanation_of(words, 60, signed=signed, seed=seed)
        shown = as_shown(Page(report(explained, spans=None if isinstance(by, str) else by)).data)
        for exact, seen in zip(explained.sources(by, "sentence"), shown.sources(by, "sentence")):
            found = {source.start: source.share for source in seen.sources}
            assert {source.start for source in exact.sources} == found.keys()
            for source in exact.sources:
                assert abs(found[source.start] - source.share) < (0.03 if signed else 0.01)


def test_rounding_makes_no_score_count_and_keeps_none_from_it():
    explained = explanation_of("abcdef", 5)
    explained = dataclasses.replace(explained, attributions=torch.tensor([[9.0, 10, 1.99, 2.01, 0.2, 0]]))
    shown = as_shown(Page(report(explained)).data)
    for found in (explained, shown):
        assert [source.text for source in found.sources("token")[0].sources] == ["b", "d"]
    spans = {"weak": (2, 5)}
    inside = dataclasses.replace(explained, attributions=torch.tensor([[9.0, 10, 2, 0.399, 0.401, 0]]))
    seen = as_shown(Page(report(inside, spans=spans)).data).sources(spans)[0]
    assert seen.sources[0].share == 1
    assert seen.ignored["weak"] == pytest.approx(inside.sources(spans)[0].ignored["weak"], abs=0.02)


def test_the_sums_of_what_is_not_counted_are_exact():
    explained = explanation_of("abcdefg", 4, special=[True, *[False] * 6])
    data = Page(report(explained)).data
    torch.testing.assert_close(_totals(data, data["summed"]).sum(1), explained.attributions.sum(1))


@pytest.mark.parametrize("keep", ["top", 1])
def test_what_was_not_kept_is_in_the_sums_of_its_kind_or_said_to_be_not_kept(keep):
    whole = explanation_of("abcdefghijkl", 8, special=[True, *[False] * 11], num_layers=2)
    compact = whole.compact(keep)
    spans = {"bcd": (1, 4)}
    for options in ({}, {"spans": spans}):
        data, exact = (Page(report(each, **options)).data for each in (compact, whole))
        assert data["kinds"] == [*exact["kinds"], "rest"]
        for stored, expected in zip([data["summed"], *data["layers"]], [exact["summed"], *exact["layers"]], strict=True):
            found, wanted = _totals(data, stored), _totals(exact, expected)
            torch.testing.assert_close(found.sum(1), wanted.sum(1))
            if keep == "top" and not options:
                torch.testing.assert_close(found[:, :-1], wanted)
            else:
                assert (found[:, -1] > 0).any()
        shown = as_shown(data).sources("token", of="answer")[0]
        if keep == "top" and not options:
            assert [s.start for s in shown.sources] == [s.start for s in whole.sources("token", of="answer")[0].sources]
    assert "only the strongest scores were kept" in data["facts"]


def _totals(data, stored):
    raw = zlib.decompress(base64.b64decode(stored["scores"]))
    num_steps, num_kinds = len(data["tokens"]) - data["promptLength"], len(data["kinds"])
    return torch.tensor(struct.unpack_from(f"<{num_steps * num_kinds}f", raw, 4 * num_steps * num_kinds)).view(num_steps, -1)


def test_no_text_of_an_explanation_is_markup():
    explained = explanation_of([*HOSTILE, "a", *HOSTILE], len(HOSTILE) + 1)
    text = report(explained, title="".join(HOSTILE))
    page = Page(text)
    assert page.data["tokens"] == explained.tokens
    assert page.data["heading"] == "".join(HOSTILE)
    assert page.elements.count("script") == 2
    assert page.elements.count("style") == 1
    assert page.elements.count("gradellm-report") == 1
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


def test_a_fragment_is_an_element_and_a_script_without_a_page():
    page = Page(report(explanation_of(HOSTILE, 4), fragment=True))
    assert page.elements == ["gradellm-report", "script", "script"]
    assert page.data["tokens"] == HOSTILE
    assert page.all_data[0]["heading"] == "Grad-ELLM explanation"


def test_units_of_each_level_cover_the_tokens():
    data = Page(report(explanation_of(["I", " eat", " app", "les", ".", " You", " too", "."], 4))).data
    assert [level["name"] for level in data["levels"]] == ["token", "word", "sentence"]
    assert data["levels"][1]["sizes"] == [1, 1, 2, 1, 1, 1, 1]
    assert data["levels"][2]["sizes"] == [4, 1, 3]
    assert data["opening"] == 1


def test_a_long_text_opens_by_sentences():
    assert Page(report(explanation_of([" word"] * 1510, 1505))).data["opening"] == 2


def test_tokens_that_share_a_character_are_one_unit_of_the_page():
    data = Page(report(explanation_of(["a", "\N{PARTY POPPER}", "", "", "b", "c"], 4))).data
    assert data["levels"][0]["sizes"] == [1, 3, 1, 1]


def test_named_spans_are_units_beside_words_and_keep_their_names():
    explained = explanation_of(["Rule", ".", " Why", "?", " So"], 4)
    data = Page(report(explained, spans={"rule": "Rule."})).data
    assert [level["name"] for level in data["levels"]] == ["token", "word", "sentence", "span"]
    assert data["levels"][3]["label"] == "Documents"
    assert data["levels"][3]["names"] == ["rule", None, None]
    assert [data["kinds"][kind] for kind in data["classes"]] == ["sink", "content", "outside", "outside", "own"]
    aggregated = Page(report(explained.aggregate({"rule": "Rule."}))).data
    assert [level["name"] for level in aggregated["levels"]] == ["span"]
    assert aggregated["levels"][0]["names"] == ["rule", None, None]


def chat():
    """A chat as a template writes it, with what the user said as segments, and an answer that thinks."""
    tokens = [
        "<|start|>",
        "system",
        "\n",
        "Be",
        " brief",
        ".",
        "<|end|>",
        "\n",
        "<|start|>",
        "user",
        "\n",
        "Why",
        "?",
        "<|end|>",
        "\n",
    ]
    tokens += ["<|start|>", "assistant", "\n", "<think>", " Hm", ".", "</think>", " So", "."]
    bounds = list(accumulate(map(len, tokens), initial=0))
    segments = [
        Segment(name=name, role=role, start=bounds[first], end=bounds[last])
        for name, role, first, last in (("1. system", "system", 3, 6), ("2. user", "user", 11, 13))
    ]
    special = [token.startswith("<|") for token in tokens]
    return explanation_of(tokens, 18, special=special, segments=segments)


def test_messages_are_units_and_the_marks_of_the_template_are_known():
    explained = chat()
    data = Page(report(explained)).data
    level = next(level for level in data["levels"] if level["name"] == "message")
    assert [name for name in level["names"] if name] == ["1. system", "2. user"]
    assert [segment["name"] for segment in data["segments"]] == ["1. system", "2. user", "thinking", "answer"]
    assert "".join(explained.tokens[i] for i in data["marks"] if not explained.special[i]).split() == [
        "system",
        "user",
        "assistant",
    ]
    whole = explained.sources("message", of="answer")[0]
    assert explained.text[whole.start : whole.end] == "Hm.</think> So."
    first, last = data["written"]
    assert "".join(data["tokens"][first:last]).strip() == whole.text


def test_two_explanations_stand_beside_each_other_under_what_tells_them_apart():
    first, second = explanation_of("abc", 2), explanation_of("abd", 2, signed=True, foil=" Canberra")
    page = Page(report(first, title="Both", compare=second))
    assert [data["tokens"] for data in page.all_data] == [list("abc"), list("abd")]
    assert [data["heading"] for data in page.all_data] == ["As written", "Why not \u201cCanberra\u201d?"]
    assert page.all_data[1]["foil"] == " Canberra"


def test_removals_are_held_by_the_part_of_the_answer_that_they_are_of():
    tested = fruit_without("apple", 3.0, [0.25, 0.75])
    (held,) = Page(report(fruit(), removals=tested)).data["removals"]
    assert (held["first"], held["last"]) == (9, 13)
    assert held["removed"] == [{"text": "apple", "share": pytest.approx(tested[0].removed[0].share)}]
    assert (held["loss"], held["other"]) == (3.0, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"title": 5}, "`title` must be None"),
        ({"spans": {"a": "nowhere"}}, "is not in the prompt"),
        ({"ignore": ["words"]}, "`ignore` must be a list"),
        ({"removals": [1]}, "`removals` must be what `GradELLM.removal_test` returned"),
        ({"compare": "text"}, "`compare` must be a second explanation"),
        ({"fragment": "yes"}, "`fragment` must be"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(options, message):
    with pytest.raises(InvalidInputError, match=message):
        report(explanation_of("abc", 2), **options)


def test_five_thousand_generated_tokens_stay_under_four_megabytes():
    assert len(report(long_explanation(12, 5000))) < 4_000_000


def test_all_layers_of_two_thousand_tokens_stay_under_six_megabytes():
    assert len(report(long_explanation(1500, 500, num_layers=30))) < 6_000_000


def test_a_text_with_nothing_generated_makes_a_page():
    assert Page(report(explanation_of("abc", 3))).data["probabilities"] == []


def test_the_notebook_form_is_an_isolated_frame_without_single_layers():
    text = snippet(explanation_of(HOSTILE, 4, num_layers=2))
    frame = dict(Page(text).attributes)
    assert frame["sandbox"] == "allow-scripts"
    assert Page(text).elements == ["iframe"]
    inner = Page(frame["srcdoc"])
    assert inner.data["tokens"] == HOSTILE
    assert inner.data["layers"] == []
