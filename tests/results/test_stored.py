"""Small files: the strongest scores, and scores in float16."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors import safe_open

from gradellm_hf import ExplainGenerateOutput, Explanation, GradELLM, GradELLMConfig, InvalidInputError
from gradellm_hf.checks.files import write_tensors
from gradellm_hf.results.stored import Seen, read, stored
from tests.results.test_kept import assert_says_the_same, chat
from tests.support.explained import long_explanation
from tests.support.small_llama import small_llama
from tests.support.tiny_tokenizers import byte_level_bpe

SMALL = [{"keep": "top"}, {"keep": 2, "score_dtype": "float16"}, {"score_dtype": "float16"}]


def assert_close(found, expected, score_dtype):
    """Equal; in float16 to within half a thousandth, and of tiny scores to within a tiny part of the row's largest."""
    is_exact = score_dtype == "float32"
    tiny = 0 if is_exact else 2**-39 * expected.abs().amax(-1, keepdim=True)
    assert ((found - expected).abs() <= (0 if is_exact else 2**-11) * expected.abs() + tiny).all()


def assert_same_heatmaps_within(found, expected, score_dtype="float32"):
    for name in ("attributions", "layer_attributions"):
        assert_close(getattr(found, name), getattr(expected, name), score_dtype)
    for name in ("rest", "layer_rest"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.classes.equal(right.classes)
            assert left.sums.equal(right.sums)
            assert left.largest.equal(right.largest)


@pytest.mark.parametrize("options", SMALL, ids=str)
@pytest.mark.parametrize("explained", [None, [n in (0, 3, 17) for n in range(18)]], ids=["all steps", "some steps"])
def test_a_small_file_holds_what_it_was_asked_to(options, explained, tmp_path):
    whole = chat()
    if explained is not None:
        mask = torch.tensor(explained)[:, None]
        scores = {name: getattr(whole, name) * mask for name in ("attributions", "layer_attributions")}
        whole = dataclasses.replace(whole, explained=explained, **scores)
    whole.save(tmp_path / "a", **options)
    found = Explanation.load(tmp_path / "a")
    expected = whole.compact(options["keep"]) if "keep" in options else whole
    assert_same_heatmaps_within(found, expected, options.get("score_dtype", "float32"))
    assert found.explained == explained
    assert found.tokens == whole.tokens
    found.save(tmp_path / "again", score_dtype=options.get("score_dtype", "float32"))  # keeps what is kept
    assert_same_heatmaps_within(Explanation.load(tmp_path / "again"), found)
    with safe_open(tmp_path / "a", "pt") as file:
        form = json.loads(file.metadata()["heatmaps"])
    assert form == {
        "form": "strongest" if "keep" in options else "before",
        "score_dtype": options.get("score_dtype", "float32"),
    }


def test_a_file_that_was_not_asked_to_be_small_is_what_earlier_releases_read(tmp_path):
    chat().save(tmp_path / "a")
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata()["format_version"] == "2"
        assert "heatmaps" not in file.metadata()


def test_larger_units_and_scores_that_no_model_gives_are_stored_too(tmp_path):
    by_sentence = chat().aggregate("sentence")
    later = dataclasses.replace(chat(), attributions=torch.rand(chat().attributions.shape))
    for explanation in (by_sentence, later):
        for options in SMALL[::2]:
            explanation.save(tmp_path / "a", **options)
            expected = explanation.compact(options["keep"]) if "keep" in options else explanation
            assert_same_heatmaps_within(Explanation.load(tmp_path / "a"), expected, options.get("score_dtype", "float32"))
    chat().compact(1).aggregate("sentence").save(tmp_path / "a")
    assert Explanation.load(tmp_path / "a").rest.largest is None


def test_float16_is_right_to_half_a_thousandth_whatever_the_size_of_a_row():
    generator = torch.Generator().manual_seed(0)
    row = torch.cat([torch.rand(500, generator=generator) * 10.0**-k for k in range(6)])
    heatmap = torch.stack([row * scale for scale in (1e-30, 1e-9, 1.0, 1e5, 1e30, 0.0)])
    seen = Seen(row.shape[0] - 6, 6, later=True)
    tensors = stored("a", heatmap, seen, torch.float16)
    assert tensors["a"].dtype == torch.float16
    found, rest = read("a", tensors, seen, {})
    assert rest is None
    torch.testing.assert_close(found, heatmap, rtol=2**-11, atol=0)


def test_a_small_file_of_a_long_text_is_small_and_says_the_same(tmp_path):
    whole = long_explanation(100, 200)
    sizes = []
    for options in (
        {},
        {"score_dtype": "float16"},
        {"keep": "top", "score_dtype": "float16"},
        {"keep": 8, "score_dtype": "float16"},
    ):
        whole.save(tmp_path / "a", **options)
        sizes.append(os.path.getsize(tmp_path / "a"))
    assert sizes[0] > 2.5 * sizes[1] > 2.5 * sizes[2] > 2.5 * sizes[3]
    exact = whole.sources(of="answer")
    whole.save(tmp_path / "a", keep="top")
    assert_says_the_same(Explanation.load(tmp_path / "a").sources(of="answer"), exact)


@pytest.mark.parametrize("change", ["counts", "positions", "missing", "more"])
def test_a_file_whose_parts_do_not_fit_together_is_refused(change, tmp_path):
    chat().save(tmp_path / "a", keep="top")
    with safe_open(tmp_path / "a", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {name: json.loads(value) for name, value in file.metadata().items() if name != "checksums"}
    if change == "counts":
        tensors["attributions_counts"][0] += 1
    elif change == "positions":
        tensors["attributions_positions"][1] = tensors["attributions_positions"][0]
    elif change == "missing":
        del tensors["rest_classes"]
    else:
        tensors["attributions_rest"] = tensors["attributions_rest"][1:]
    write_tensors(tmp_path / "a", tensors, metadata)
    with pytest.raises(InvalidInputError, match=r"cannot be read: .*(fit together|rest_classes|attributions_rest)"):
        Explanation.load(tmp_path / "a")


@pytest.fixture(scope="module")
def padded():
    tokenizer = byte_level_bpe()
    model = small_llama(vocab_size=len(tokenizer))
    wrapped = GradELLM(model, tokenizer, GradELLMConfig(output_layer_attributions=True))
    inputs = tokenizer(["Rome is the capital of Italy", "Paris"], return_tensors="pt", padding=True, padding_side="left")
    return wrapped, tokenizer, inputs


@pytest.mark.parametrize("steps", [None, slice(-2, None)], ids=["all steps", "some steps"])
def test_a_small_output_has_the_small_explanations_of_its_rows(padded, steps, tmp_path):
    wrapped, tokenizer, inputs = padded
    out = wrapped.generate(**inputs, max_new_tokens=5, do_sample=False, steps=steps)
    for options in SMALL:
        out.save(tmp_path / "a", tokenizer, **options)
        loaded = ExplainGenerateOutput.load(tmp_path / "a")
        loaded.save(tmp_path / "again", tokenizer)
        for found in (loaded, ExplainGenerateOutput.load(tmp_path / "again")):
            for explanation, whole in zip(found.explanations(tokenizer), out.explanations(tokenizer), strict=True):
                expected = whole.compact(options["keep"]) if "keep" in options else whole
                score_dtype = options.get("score_dtype", "float32")
                for name in ("attributions", "layer_attributions"):
                    assert_close(getattr(explanation, name), getattr(expected, name), score_dtype)
                if "keep" in options:
                    torch.testing.assert_close(explanation.rest.total, expected.rest.total)
                    torch.testing.assert_close(explanation.layer_rest.total, expected.layer_rest.total)
        if options == {"keep": "top"}:
            for explanation, whole in zip(loaded.explanations(tokenizer), out.explanations(tokenizer)):
                assert explanation.compact(1).attributions.equal(whole.compact(1).attributions)
                assert_says_the_same(explanation.sources("token", of="answer"), whole.sources("token", of="answer"))


def test_options_of_small_files_are_checked_before_anything_is_written(padded, tmp_path):
    wrapped, tokenizer, inputs = padded
    out = wrapped.generate(**inputs, max_new_tokens=1)
    for save in (chat().save, lambda path, **options: out.save(path, tokenizer, **options)):
        with pytest.raises(InvalidInputError, match="`score_dtype` must be 'float32' or 'float16'"):
            save(tmp_path / "a", score_dtype="int8")
        with pytest.raises(InvalidInputError, match="`keep` must be"):
            save(tmp_path / "a", keep="all")
    assert not (tmp_path / "a").exists()
