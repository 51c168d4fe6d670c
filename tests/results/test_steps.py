"""An explanation of some steps only: the others are left out everywhere, and nothing is claimed about them."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open

from gradellm_hf import ExplainGenerateOutput, Explanation, GradELLMConfig, InvalidInputError, explain_generate
from gradellm_hf.interchange import load_inseq, save_inseq
from tests.support.readable import made_up
from tests.support.small_llama import PAD, assert_same_heatmaps, padded_prompts, small_llama

TOKENS = ["Rome", " is", " old", ".", " So", " it", " is", ".", " Yes", "."]
BORDER = 4


def explained_only(*steps, **fields):
    """Of the six generated tokens, these steps are explained; and the explanation of all of them."""
    whole = made_up(TOKENS, BORDER, **fields)
    explained = [n in steps for n in range(6)]
    others = ~torch.tensor(explained)
    return (
        dataclasses.replace(
            whole,
            attributions=whole.attributions.masked_fill(others[:, None], 0),
            layer_attributions=whole.layer_attributions.masked_fill(others[:, None], 0),
            token_probabilities=whole.token_probabilities.masked_fill(others, 0),
            target_scores=whole.target_scores.masked_fill(others, 0),
            explained=explained,
        ),
        whole,
    )


def test_parts_are_what_is_explained_of_them_with_the_shares_of_these_tokens():
    some, whole = explained_only(1, 2)
    (part,) = some.sources("token", "sentence")
    assert part.text == "it is"
    assert some.text[part.start : part.end] == "it is"
    torch.testing.assert_close(part.probability, whole.token_probabilities[1:3].prod().item())
    alone = made_up(TOKENS, BORDER).sources("token", "token")
    assert {source.start for source in part.sources} == {source.start for n in (1, 2) for source in alone[n].sources}
    torch.testing.assert_close(sum(s.share for s in part.sources), 1.0)
    assert [p.text for p in some.sources("token", "token")] == ["it", "is"]


def test_an_answer_of_which_all_is_explained_has_the_sources_that_it_has_without_saying_so():
    some, whole = explained_only(*range(6))
    for of in ("answer", "sentence", "token"):
        assert some.sources("word", of).to_dict() == whole.sources("word", of).to_dict()


def test_steps_that_lie_apart_make_one_part_of_what_lies_between_them():
    some, whole = explained_only(0, 4)
    (part,) = some.sources("token", "answer")
    assert part.text == "So it is. Yes"
    torch.testing.assert_close(part.probability, whole.token_probabilities[[0, 4]].prod().item())


def test_an_answer_of_which_nothing_is_explained_is_refused_with_its_steps():
    some, _ = explained_only(5, special=[False] * 9 + [True])
    for of in ("answer", "sentence", "token"):
        with pytest.raises(InvalidInputError, match=r"No token of the answer is explained.*The answer's steps are 0 to 4"):
            some.sources(of=of)


def test_larger_units_are_explained_if_one_of_their_tokens_is():
    some, whole = explained_only(1, 2)
    sentences = some.aggregate("sentence")
    assert sentences.explained == [True, False]
    torch.testing.assert_close(sentences.token_probabilities, torch.tensor([whole.token_probabilities[1:3].prod().item(), 0]))
    assert sentences.sources("token", "token")[0].text == "So it is."
    assert whole.aggregate("sentence").explained is None


def test_a_trace_goes_through_explained_tokens_only():
    some, whole = explained_only(0, 1, 2)
    torch.testing.assert_close(some.trace().attributions[:3], whole.trace().attributions[:3])
    with pytest.raises(InvalidInputError, match="goes through all generated tokens before an explained one"):
        explained_only(3, 4)[0].trace()


def test_the_strongest_of_a_step_that_is_not_explained_are_not_told():
    some, whole = explained_only(1)
    assert some.top(1) == some.top(-5) == whole.top(1)
    with pytest.raises(InvalidInputError, match="Step -1 is not explained"):
        some.top(-1)


def test_what_is_shown_names_no_step_that_is_not_explained():
    some, whole = explained_only(1, 2)
    shown, shown_of_all = ([line.split() for line in x.render().splitlines()] for x in (some, whole))
    assert shown[:2] == shown_of_all[1:3]
    assert "(4 of 6 generated tokens are not explained)" in some.render()
    assert [step["position"] for step in some.to_dict()["steps"]] == [5, 6]
    assert set(some.to_dataframe()["step"]) == {1, 2}
    assert [label.get_text() for label in some.plot().axes[0].get_yticklabels()] == ["it", "is"]


def test_files_hold_the_rows_of_explained_steps_and_are_read_as_they_were(tmp_path):
    some, _ = explained_only(1, 4)
    some.save(tmp_path / "some.safetensors")
    with safe_open(tmp_path / "some.safetensors", "pt") as file:
        assert file.get_slice("attributions").get_shape() == [2, 10]
        assert file.get_slice("layer_attributions").get_shape() == [3, 2, 10]
        assert file.metadata()["format_version"] == "3"
    loaded = Explanation.load(tmp_path / "some.safetensors")
    assert loaded.explained == some.explained
    for name in ("attributions", "layer_attributions", "token_probabilities", "target_scores"):
        assert torch.equal(getattr(loaded, name), getattr(some, name))
    save_inseq(some, tmp_path / "some.json")
    (again,) = load_inseq(tmp_path / "some.json")
    assert again.explained == some.explained
    assert torch.equal(again.attributions, some.attributions)


@pytest.mark.parametrize("explained", [[True] * 5, [1] * 6, "yes"], ids=str)
def test_what_says_nothing_about_each_step_is_refused(explained):
    with pytest.raises(InvalidInputError, match="`explained`"):
        made_up(TOKENS, BORDER, explained=explained)


class Letters:
    """A tokenizer with one letter a token."""

    all_special_ids = ()

    def decode(self, ids, **_):
        return "".join(chr(97 + i % 26) for i in ids)

    def convert_ids_to_tokens(self, ids):
        return [self.decode([i]) for i in ids]


@pytest.fixture(scope="module")
def outputs():
    """Rows of different lengths, of which the last two tokens are explained; and the same with all of them."""
    model, prompts = small_llama(), padded_prompts()
    ends = model.generate(**prompts, max_new_tokens=9)[0, 9 + 4].item()
    options = {**prompts, "max_new_tokens": 9, "eos_token_id": ends, "pad_token_id": PAD}
    options["explain_config"] = GradELLMConfig(output_layer_attributions=True)
    return explain_generate(model, **options, steps=slice(-2, None)), explain_generate(model, **options)


def test_the_rows_of_an_output_know_which_of_their_steps_are_explained(outputs):
    some, whole = (out.explanations(Letters()) for out in outputs)
    for row, all_of_it in zip(some, whole):
        num_steps = len(row.attributions)
        assert row.explained == [False] * (num_steps - 2) + [True] * 2
        assert all_of_it.explained is None
        for name in ("attributions", "layer_attributions"):
            actual, expected = getattr(row, name), getattr(all_of_it, name)
            assert_same_heatmaps(actual[..., -2:, :], expected[..., -2:, :])
            assert not actual[..., :-2, :].any()


def test_the_file_of_an_output_holds_explained_steps_only_and_is_read_as_it_was(outputs, tmp_path):
    some, whole = outputs
    for out, name in ((some, "some"), (whole, "whole")):
        out.save(tmp_path / name, Letters())
        with safe_open(tmp_path / name, "pt") as file:
            rows = 9 if out is whole else int(out.explained_mask.any(0).sum())
            assert file.get_slice("attributions").get_shape() == [3, rows, 18]
            assert file.metadata()["format_version"] == ("1" if out is whole else "2")
        loaded = ExplainGenerateOutput.load(tmp_path / name)
        for field in ("attributions", "layer_attributions", "step_mask", "explained_mask"):
            expected = getattr(out, field)
            assert getattr(loaded, field) is None if expected is None else torch.equal(getattr(loaded, field), expected)
    assert rows == 9
    assert int(some.explained_mask.any(0).sum()) < 9


def test_a_file_whose_rows_are_not_those_of_the_explained_steps_is_refused(tmp_path, monkeypatch):
    some, _ = explained_only(1, 4)
    monkeypatch.setattr("gradellm_hf.results.files.without_zeros", lambda x, rows: x)
    some.save(tmp_path / "some.safetensors")
    with pytest.raises(InvalidInputError, match=r"`attributions` must have shape \[2, 10\]"):
        Explanation.load(tmp_path / "some.safetensors")


def test_the_json_of_some_steps_can_be_read():
    assert [step["token"] for step in json.loads(explained_only(1)[0].to_json())["steps"]] == [" it"]
