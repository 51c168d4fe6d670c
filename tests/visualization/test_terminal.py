"""Explanations as lines of text."""

import pytest
import torch

from gradellm_hf.results.explanation import Explanation
from gradellm_hf.visualization.terminal import cell_width
from tests.support.explained import HOSTILE, explanation_of


def scored(tokens, prompt_length, scores, special=None):
    return Explanation(
        tokens=tokens,
        token_ids=None,
        prompt_length=prompt_length,
        attributions=torch.tensor(scores),
        token_probabilities=torch.ones(len(scores)),
        text="".join(tokens),
        special=special or [False] * len(tokens),
    )


def test_the_strongest_come_first_with_shares_that_leave_out_what_is_ignored():
    scores = [[9.0, 1.0, 4.0, 0.0, 0.0], [9.0, 0.0, 2.0, 3.0, 0.0]]
    explained = scored(["<s>", " a", "\n", " b", "c"], 3, scores, [True, False, False, False, False])
    assert explained.render(top=2).split("\n") == [
        r"b  \n 80 %  a 20 %",
        r"c  \n 100 %",
        "(not counted: special tokens 64 %, own text 11 %)",
    ]
    assert explained.render(top=1, ignore=()).split("\n") == [
        "b  <s> 69 %",
        "c  <s> 64 %",
        "(not counted: weak scores 4 %)",
    ]
    with pytest.warns(FutureWarning, match="now `ignore="):
        assert explained.render(top=1, include_special=True) == explained.render(top=1, ignore=())


def test_scores_that_are_small_beside_the_largest_do_not_count():
    explained = scored(["x", "a", "b", "c"], 3, [[0.0, 20.0, 1.0, 0.0]])
    assert explained.render().split("\n") == ["c  a 100 %", "(not counted: weak scores 5 %)"]


def test_nothing_of_the_text_controls_the_terminal():
    texts = [text for text in HOSTILE if text.isascii() or "d8" not in ascii(text)]
    explained = explanation_of([*texts, *texts], len(texts))
    for line in explained.render(top=99).split("\n"):
        assert line.isprintable()
    assert len(explained.render(top=99).split("\n")) == len(texts) + 1
    assert r"\x1b[2J" in explained.render(top=99)


def test_columns_line_up_for_wide_characters():
    explained = explanation_of(["s", "x", "y", "\u4f60\u597d", "abc", "e\u0301"], 3)
    lines = explained.render(top=1).split("\n")
    assert [line[: line.rindex("  ")] for line in lines[:3]] == ["\u4f60\u597d", "abc ", "e\u0301   "]


@pytest.mark.parametrize(
    ("text", "width"),
    [("abc", 3), ("\u4f60\u597d", 4), ("e\u0301", 1), ("\U0001f600", 2), ("\uff21", 2), ("\uff71", 1), ("", 0)],
)
def test_a_terminal_gives_wide_characters_two_columns_and_combining_ones_none(text, width):
    assert cell_width(text) == width


def test_the_coloured_form_shades_by_relative_score_and_by_sign():
    strong, against, weak = (
        scored(["s", "a", "b", "d", "c"], 4, [[0.0, 4.0, 1.0, -2.0, 0.0]]).render(color=True).split("48;5;")[1:]
    )
    assert strong.startswith("18m a ")
    assert weak.startswith("153m b ")
    assert against.startswith("209m d ")


def test_a_unit_does_not_rest_on_itself():
    words = scored(["s", " a", " b", "c"], 2, [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 5.0, 0.0]]).aggregate("word")
    assert words.render(ignore=()) == "bc  a 100 %"
