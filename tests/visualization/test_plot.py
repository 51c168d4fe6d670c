"""Heatmaps as figures."""

import sys
import warnings
from itertools import pairwise

import pytest
import torch

from gradellm_hf import GradELLMError, InvalidInputError
from gradellm_hf.visualization import plot_heatmap
from tests.support.explained import HOSTILE, explanation_of


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_rows_are_generated_tokens_relative_to_their_highest():
    special = [True, False, False, False, False]
    explained = explanation_of("abcde", 3, special=special)
    axes = plot_heatmap(explained).axes[0]
    shown = torch.from_numpy(axes.images[0].get_array().data)
    scores = explained.attributions[:, 1:4]
    torch.testing.assert_close(shown, scores / scores.amax(1, keepdim=True))
    assert (labels(axes.yaxis), labels(axes.xaxis)) == (["d", "e"], ["b", "c", "d"])
    assert labels(plot_heatmap(explained, include_special=True).axes[0].xaxis) == ["a", "b", "c", "d"]


def test_scores_of_both_signs_get_two_hues_around_zero():
    image = plot_heatmap(explanation_of("abcd", 2, signed=True)).axes[0].images[0]
    assert image.get_clim() == (-1, 1)
    assert image.cmap.name == "PuOr"


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
