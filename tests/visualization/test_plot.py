"""Heatmaps as figures."""

import dataclasses
import sys
import warnings
from itertools import pairwise

import pytest
import torch
from matplotlib.text import Text

from gradellm_hf import GradELLMError, InvalidInputError
from gradellm_hf.visualization import plot_heatmap
from tests.support.explained import HOSTILE, explanation_of
from tests.support.readable import made_up


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def shown(axes):
    return torch.from_numpy(axes.images[0].get_array().filled(torch.nan))


def all_texts(figure):
    """The texts of a figure, in the order in which they were made."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def cells(axes):
    return {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in axes.texts}


def test_rows_are_generated_tokens_and_colours_are_the_documented_shares():
    scores = torch.tensor([[90.0, 1, 6, 2, 0, 0], [90, 0, 8, 8, 5, 0]])
    explained = made_up(list("abcdef"), 4, special=[True, *[False] * 5], attributions=scores, layer_attributions=None)
    axes = plot_heatmap(explained).axes[0]
    torch.testing.assert_close(shown(axes), torch.tensor([[0, 0.75, 0.25], [0, 0.5, 0.5]]))  # 1 is weak beside 6
    assert (labels(axes.yaxis), labels(axes.xaxis)) == (["e", "f"], ["b", "c", "d"])


def test_what_is_ignored_has_no_column_and_is_stated():
    explained = explanation_of("abcde", 3, special=[True, False, False, False, True])
    figure = plot_heatmap(explained)
    assert (labels(figure.axes[0].yaxis), labels(figure.axes[0].xaxis)) == (["d"], ["b", "c"])
    assert "not counted: special tokens" in all_texts(figure)[-1].get_text()
    axes = plot_heatmap(explained, ignore=()).axes[0]
    assert (labels(axes.yaxis), labels(axes.xaxis)) == (["d", "e"], ["a", "b", "c", "d"])
    with pytest.raises(InvalidInputError, match="`ignore` must be a list of some of"):
        plot_heatmap(explained, ignore="special")


def test_the_old_name_of_ignore_works_with_a_warning():
    explained = explanation_of("abcde", 3, special=[True, False, False, False, False])
    for include_special, expected in [(True, ["a", "b", "c", "d"]), (False, ["b", "c", "d"])]:
        with pytest.warns(FutureWarning, match="`include_special` is now `ignore="):
            figure = plot_heatmap(explained, include_special=include_special)
        assert labels(figure.axes[0].xaxis) == expected


def test_scores_of_both_signs_get_two_hues_around_zero_and_the_foil_is_named():
    explained = dataclasses.replace(explanation_of("abcd", 2, signed=True), foil=" Canberra")
    figure = plot_heatmap(explained, ignore=())
    (image,) = figure.axes[0].images
    low, high = image.get_clim()
    assert -low == high == shown(figure.axes[0]).abs().max()
    assert image.cmap.name == "PuOr"
    assert "(rather than Canberra, for which negative shares speak)" in all_texts(figure)[-1].get_text()
    assert any("%" in text and text[0] in "-\u2212" for text in labels(figure.axes[1].yaxis))


SPANS = {"the first document": "Red cats purr.", "the second": " Old dogs bark."}


def two_documents(*rows, **fields):
    """`Red cats purr. Old dogs bark.`, then `Cats meow.`"""
    tokens = ["Red", " cats", " purr", ".", " Old", " dogs", " bark", ".", "\n", "Cats", " meow", "."]
    scores = torch.zeros(3, len(tokens))
    for i, row in enumerate(rows):
        scores[i, : len(row)] = torch.tensor(row, dtype=torch.float32)
    return made_up(tokens, 9, attributions=scores, layer_attributions=None, **fields)


def test_documents_are_rows_and_words_of_the_answer_are_columns():
    explained = two_documents([0, 6, 0, 0, 0, 2], [0, 0, 3, 0, 0, 3], [0, 0, 0, 0, 5])
    axes = explained.sources(SPANS, of="word").plot().axes[0]
    assert labels(axes.yaxis) == list(SPANS)
    assert labels(axes.xaxis) == ["Cats", "meow", "."]
    expected = torch.tensor([[0.75, 0.5, torch.nan], [0.25, 0.5, 1]])
    torch.testing.assert_close(shown(axes), expected, equal_nan=True)
    assert cells(axes) == {(0, 0): "75 %", (0, 1): "25 %", (1, 0): "50 %", (1, 1): "50 %", (2, 1): "100 %"}


def test_sources_without_names_are_shortened_and_not_counted_is_the_average_of_the_parts():
    explained = two_documents([1, 6, 0, 0, 0, 2], [9, 9])
    figure = explained.sources("sentence", of="token").plot()
    assert labels(figure.axes[0].yaxis) == ["Red cats purr.", "Old dogs bark."]
    assert all_texts(figure)[-1].get_text() == "(not counted: first position 20\u00a0%)"  # 1/9, 9/18 and nothing
    long = made_up(["word " * 30, "end."], 1, attributions=torch.tensor([[1.0, 0]]), layer_attributions=None)
    (label,) = labels(long.sources("sentence", ignore=()).plot().axes[0].yaxis)
    assert len(label) <= 28
    assert label.startswith("word word")
    assert "\u2026" in label


def test_sources_of_nothing_cannot_be_plotted():
    with pytest.raises(InvalidInputError, match="the answer is empty"):
        made_up(["a", " b"], 2).sources().plot()
    with pytest.raises(InvalidInputError, match="no source has a share"):
        two_documents().sources().plot()


LONG = "It opens at nine on weekdays, and nobody knows why it stays closed on Sundays."


@pytest.mark.parametrize("num_documents", [1, 4, 80])
@pytest.mark.parametrize("num_words", [1, 5, 200])
@pytest.mark.parametrize("letter", ["W", "\u4f60"])
def test_no_text_of_a_figure_is_clipped(num_documents, num_words, letter):
    tokens = [f" {letter * 40}{i}" for i in range(num_documents + num_words)]
    explained = explanation_of(tokens, num_documents, signed=True)
    explained = dataclasses.replace(explained, foil=letter * 70)
    spans = {token[:30] + LONG: token for token in tokens[:num_documents]}
    for figure in (
        explained.sources(dict(zip(spans, tokens)), of="token", ignore=()).plot(title=LONG * 3),
        plot_heatmap(explained, title=LONG * 3, ignore=()),
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            warnings.filterwarnings("error", message="constrained_layout")
            figure.draw_without_rendering()
        bar = figure.axes[1]
        low, high = bar.get_ylim()
        beyond = [label for label in bar.get_yticklabels() if not low <= label.get_position()[1] <= high]  # not drawn
        for text in set(all_texts(figure)) - set(beyond):
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0, text
            assert box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0, text
            assert box.y1 <= figure.bbox.y1, text


@pytest.mark.parametrize(("num_tokens", "prompt_length"), [(20, 12), (500, 300), (2000, 1900)])
def test_labels_do_not_overlap(num_tokens, prompt_length):
    figure = plot_heatmap(explanation_of([" token"] * num_tokens, prompt_length))
    figure.draw_without_rendering()
    assert max(figure.get_size_inches()) <= 16
    axes = figure.axes[0]
    for axis, low, high in [(axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")]:
        boxes = sorted((label.get_window_extent() for label in axis.get_ticklabels()), key=lambda box: getattr(box, low))
        assert len(boxes) >= min(8, num_tokens - prompt_length)
        assert all(getattr(a, high) <= getattr(b, low) + 1 for a, b in pairwise(boxes))


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_any_text_is_written_in_each_format_without_warnings(tmp_path, suffix, start):
    tokens = ["$x^", "$\\frac{$", "\u4f60", "\N{PARTY POPPER}", "\u0e2a", *HOSTILE[:-1]]
    path = tmp_path / f"heatmap.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_heatmap(explanation_of(tokens, 4), path, title="costs $5 or $6")
    assert path.read_bytes().startswith(start)


def test_nothing_to_show_is_said():
    with pytest.raises(InvalidInputError, match="0 generated units"):
        plot_heatmap(explanation_of("abc", 3))


def test_pyplot_stays_out_of_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    plot_heatmap(explanation_of("abc", 2), tmp_path / "heatmap.png")
    assert (tmp_path / "heatmap.png").exists()


def test_a_missing_matplotlib_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(GradELLMError, match=r"not installed: pip install matplotlib$"):
        plot_heatmap(explanation_of("abc", 2))
