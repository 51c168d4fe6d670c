"""`Explanation`: what a row of an output becomes, and what can be done with it."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from gradellm_hf import ExplainGenerateOutput, GradELLMConfig, InvalidInputError, explain_generate, explain_sequences
from gradellm_hf.results.explanation import Explanation
from tests.support.readable import made_up
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, small_llama
from tests.support.tiny_tokenizers import byte_level_bpe

TENSORS = ("attributions", "token_probabilities", "target_scores", "layer_attributions")


@pytest.fixture(scope="module")
def llama():
    return small_llama(vocab_size=len(byte_level_bpe()))


@pytest.fixture(scope="module")
def output(llama):
    """Three prompts of different lengths; the second row ends early."""
    inputs = padded_prompts((9, 5, 7))
    free = llama.generate(**inputs, max_new_tokens=6, do_sample=False)
    end = free[1, 11].item()
    config = GradELLMConfig(layers=[0, 3], output_layer_attributions=True)
    out = explain_generate(llama, **inputs, max_new_tokens=6, do_sample=False, eos_token_id=end, explain_config=config)
    assert out.step_mask[1].tolist() == [True] * 3 + [False] * 3
    return out


def test_a_row_without_its_padding_and_what_follows_its_end(output):
    explanation = output.explanation(1, byte_level_bpe())
    assert explanation.prompt_length == 5
    assert explanation.token_ids == output.sequences[1, 4:12].tolist()
    assert len(explanation.tokens) == 8
    assert explanation.text == byte_level_bpe().decode(explanation.token_ids)
    assert torch.equal(explanation.attributions, output.attributions[1, :3, 4:12])
    assert torch.equal(explanation.layer_attributions, output.layer_attributions[1, :, :3, 4:12])
    assert torch.equal(explanation.token_probabilities, output.token_probabilities[1, :3])
    assert torch.equal(explanation.target_scores, output.target_scores[1, :3])
    assert explanation.layers == [0, 3]
    assert explanation.layer_names == output.layer_names
    assert explanation.explain_config == output.explain_config
    torch.testing.assert_close(explanation.attributions.sum(), output.attributions[1].sum())  # nothing is left out


def test_every_row_is_what_it_is_alone(llama, output):
    for row, explanation in enumerate(output.explanations(byte_level_bpe())):
        ids, prompt_length = torch.tensor([explanation.token_ids]), explanation.prompt_length
        alone = explain_sequences(llama, ids, prompt_length, explain_config=output.explain_config)
        (expected,) = alone.explanations(byte_level_bpe())
        assert expected.tokens == explanation.tokens, row
        assert_same_heatmaps(explanation.attributions, expected.attributions)


def test_text_has_what_a_real_chat_has(smollm2):
    model, tokenizer = smollm2
    chat = [{"role": "user", "content": "Name the capital of Italy."}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = explain_generate(model, **inputs, max_new_tokens=8, do_sample=False)
    (explanation,) = out.explanations(tokenizer)
    assert explanation.text == tokenizer.decode(out.sequences[0])
    assert {token for token, special in zip(explanation.tokens, explanation.special) if special} == {
        "<|im_start|>",
        "<|im_end|>",
    }
    rome = [token.strip() for token in explanation.tokens[explanation.prompt_length :]].index("Rome")
    assert " Italy" in [token for _, token, _ in explanation.top(rome, 5)]
    assert "Rome" in explanation.render()


def test_generated_text_without_a_tokenizer_is_refused(output):
    with pytest.raises(InvalidInputError, match="give the one that the prompt was made with"):
        output.explanations()
    with pytest.raises(InvalidInputError, match="tokenizer is needed to write the tokens as text, got int"):
        output.explanations(7)


def test_the_stored_tokens_of_a_loaded_output_are_shown_as_they_are(output, tmp_path):
    output.save(tmp_path / "out.safetensors", byte_level_bpe())
    explanation = ExplainGenerateOutput.load(tmp_path / "out.safetensors").explanations()[1]
    assert explanation.tokens == byte_level_bpe().convert_ids_to_tokens(output.sequences[1, 4:12].tolist())


def test_a_token_that_the_stored_vocabulary_lacks_has_no_text(output, tmp_path):
    class Smaller:
        def convert_ids_to_tokens(self, ids):
            return [None if i == output.sequences[1, 5] else f"<{i}>" for i in ids]

    output.save(tmp_path / "out.safetensors", Smaller())
    explanation = ExplainGenerateOutput.load(tmp_path / "out.safetensors").explanations()[1]
    assert explanation.tokens[1] == ""
    assert explanation.tokens[0] == f"<{output.sequences[1, 4]}>"
    assert explanation.token_ids[1] == output.sequences[1, 5]


def test_prompts_of_embeddings_have_no_text(llama):
    embeds = llama.get_input_embeddings()(torch.tensor([[5, 6, 7]]))
    out = explain_generate(llama, inputs_embeds=embeds, max_new_tokens=2)
    with pytest.raises(InvalidInputError, match="embeddings, which have no text"):
        out.explanations(byte_level_bpe())


def test_rows_that_are_not_there(output):
    for row in (-1, 3):
        with pytest.raises(InvalidInputError, match=f"no row {row}: 3 sequences"):
            output.explanation(row, byte_level_bpe())


def scored(scores, **fields):
    """Four prompt tokens, the second special, and one step with these scores."""
    attributions = torch.tensor([scores], dtype=torch.float32)
    special = [False, True, False, False, False]
    return made_up(list("abcde"), 4, attributions=attributions, special=special, layer_attributions=None, **fields)


def test_top_ranks_by_size_and_leaves_out_zeros_and_what_is_ignored():
    explanation = scored([7, 9, -3, 2, 5])
    assert explanation.top(0) == [(2, "c", -3.0), (3, "d", 2.0)]
    assert explanation.top(0, 1) == [(2, "c", -3.0)]
    assert explanation.top(-1, 2, ignore=()) == [(1, "b", 9.0), (0, "a", 7.0)]
    assert explanation.top(0, 2, ignore=["sink", "special"]) == [(4, "e", 5.0), (2, "c", -3.0)]
    assert explanation.attributions[0].tolist() == [7, 9, -3, 2, 5]


def test_the_old_argument_of_top_still_works():
    with pytest.warns(FutureWarning, match="now `ignore="):
        assert scored([7, 9, -3, 2, 0]).top(0, 2, include_special=True) == [(1, "b", 9.0), (0, "a", 7.0)]
    with pytest.warns(FutureWarning, match="now `ignore="):
        assert scored([7, 9, -3, 2, 0]).top(0, 2, include_special=False) == [(0, "a", 7.0), (2, "c", -3.0)]


def test_what_cannot_be_ignored_is_named():
    for wrong in (["prompt"], "special", 3):
        with pytest.raises(InvalidInputError, match="`ignore` must be a list of some of"):
            scored([1, 1, 1, 1, 0]).top(0, ignore=wrong)


def test_top_names_spans():
    spans = scored([0, 0, 1, 2, 0]).aggregate({"the end": "cd"})
    assert spans.top(0) == [(2, "the end", 3.0)]


def test_the_sink_has_no_part_in_larger_units_unless_asked_for():
    assert scored([7, 9, 1, 2, 0]).aggregate("sentence").attributions.tolist() == [[0, 9, 3, 0]]
    assert scored([7, 9, 1, 2, 0]).aggregate("sentence", ignore=()).attributions.tolist() == [[7, 9, 3, 0]]


def test_equal_scores_keep_the_order_of_the_text():
    assert [position for position, _, _ in scored([0, 2, 2, 2, 0]).top(0, ignore=())] == [1, 2, 3]


@pytest.mark.parametrize("step", [1, -2])
def test_steps_that_are_not_there(step):
    with pytest.raises(InvalidInputError, match=f"no step {step}: 1 steps"):
        scored([1, 0, 0, 0, 0]).top(step)


def test_normalised_by_the_largest_score_or_by_the_sum():
    explanation = scored([1, 9, -3, 0, 0])
    torch.testing.assert_close(explanation.normalize().attributions[0], torch.tensor([1 / 9, 1, -1 / 3, 0, 0]))
    torch.testing.assert_close(explanation.normalize("sum").attributions[0], torch.tensor([1 / 13, 9 / 13, -3 / 13, 0, 0]))
    assert scored([0, 0, 0, 0, 0]).normalize("sum").attributions.tolist() == [[0, 0, 0, 0, 0]]
    with pytest.raises(InvalidInputError, match="got 'softmax'"):
        explanation.normalize("softmax")


@pytest.mark.parametrize("by", ["max", "sum"])
def test_normalised_layers_still_add_up(by):
    normalized = made_up(list("abcdefg"), 3).normalize(by)
    torch.testing.assert_close(normalized.layer_attributions.sum(0), normalized.attributions)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "abcd"}, "do not join"),
        ({"attributions": torch.zeros(2, 5)}, r"`attributions` must have shape \[1, 5\].*got \[2, 5\]"),
        ({"token_probabilities": torch.zeros(2)}, "`token_probabilities` must have shape"),
        ({"target_scores": torch.zeros(1, 1)}, "`target_scores` must have shape"),
        ({"layer_attributions": torch.zeros(2, 5)}, "`layer_attributions` must have shape"),
        ({"attributions": torch.full((1, 5), torch.nan)}, "`attributions` holds values that are not finite"),
        ({"token_probabilities": torch.tensor([torch.inf])}, "`token_probabilities` holds"),
        ({"special": [False]}, "`special` must have an entry"),
        ({"token_ids": [1, 2]}, "`token_ids` must have an entry"),
        ({"unit_names": []}, "`unit_names` must have an entry"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, message):
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(made_up(list("abcde"), 4), **fields)


@pytest.mark.parametrize("name", ["attributions", "token_probabilities", "target_scores", "layer_attributions"])
@pytest.mark.parametrize("value", ["scores", b"12", [["a", "b"]], [[1, 2], [3]], {1: 2}, torch.zeros(2, dtype=torch.complex64)])
def test_scores_that_are_no_numbers_are_refused(name, value):
    with pytest.raises(InvalidInputError, match=f"`{name}` must be a tensor of numbers; got "):
        dataclasses.replace(made_up(list("abcde"), 4), **{name: value})


@pytest.mark.parametrize("config", [{}, {"layers": 1}, "paper"])
def test_a_configuration_is_no_dict(config):
    with pytest.raises(InvalidInputError, match="`explain_config` must be a GradELLMConfig, got"):
        dataclasses.replace(made_up(list("abcde"), 4), explain_config=config)


def test_a_shape_that_does_not_fit_says_what_it_does_not_fit_to():
    for fields, message in (
        (
            {"layer_attributions": torch.zeros(2, 1, 5), "layers": [0]},
            r"`layer_attributions` .*\[1, 1, 5\].* L as `layers` says",
        ),
        ({"attributions": torch.zeros(1, 4)}, r"`attributions` .*\[1, 5\].* N as `prompt_length` says, S as `tokens` says"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            dataclasses.replace(made_up(list("abcde"), 4), **fields)


@pytest.mark.parametrize("output", [None, {}, torch.zeros(1, 2)])
def test_the_old_name_refuses_something_else_than_an_output(output):
    message = f"`output` must be an ExplainGenerateOutput, got {type(output).__name__}"
    with pytest.warns(FutureWarning, match="is now `output.explanation"), pytest.raises(InvalidInputError, match=message):
        Explanation.from_output(output, 0, None)


def test_the_old_name_makes_the_same_and_says_the_new_one(output):
    with pytest.warns(FutureWarning, match=r"is now `output\.explanation\(row, tokenizer\)`") as warned:
        old = Explanation.from_output(output, 1, byte_level_bpe())
    same(old, output.explanation(1, byte_level_bpe()))
    assert [warning.filename for warning in warned] == [__file__]


def same(first, second):
    for field in dataclasses.fields(Explanation):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_a_file_holds_everything_bit_by_bit(output, tmp_path):
    path = tmp_path / "row.safetensors"
    for explanation in output.explanations(byte_level_bpe()):
        explanation.save(path)
        same(Explanation.load(str(path)), explanation)
        spans = explanation.aggregate([(0, 1)], generated="word")
        spans.save(path)
        same(Explanation.load(path), spans)
    assert [file.name for file in tmp_path.iterdir()] == ["row.safetensors"]


def test_what_is_optional_stays_away(tmp_path):
    explanation = made_up(list("abc"), 2, target_scores=None, layer_attributions=None, layers=None, model_name=None)
    explanation.save(tmp_path / "a")
    same(Explanation.load(tmp_path / "a"), explanation)


def test_a_callable_target_does_not_come_back(tmp_path):
    config = GradELLMConfig(target=lambda logits, ids: logits.sum(-1))
    made_up(list("abc"), 2, explain_config=config).save(tmp_path / "a")
    assert Explanation.load(tmp_path / "a").explain_config is None


def test_foreign_files_are_told_apart(output, tmp_path):
    (tmp_path / "text").write_text("no tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    output.save(tmp_path / "output")
    for name, message in (("text", "is not a file that"), ("other", "but not one that"), ("output", "but not one that")):
        with pytest.raises(InvalidInputError, match=f"{name}.*{message} `Explanation.save` wrote"):
            Explanation.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no file"):
        Explanation.load(tmp_path / "nowhere")


def test_a_file_of_a_later_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("gradellm_hf.results.files.FORMAT_VERSION", 7)
    made_up(list("abc"), 2).save(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(InvalidInputError, match=r"has format version 5; .* up to 4"):
        Explanation.load(tmp_path / "a")


def test_pages_pictures_and_lines(tmp_path):
    explanation = made_up(["<b>", " two", " three", " four"], 2)
    page = explanation.to_html(tmp_path / "page.html", title="Mine")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert "Mine" in page
    assert "<b> two" not in page
    assert explanation._repr_html_() != page
    explanation.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "three" in explanation.render(top=1)


def test_its_name_says_what_it_is():
    assert repr(made_up(["a", " b", " c"], 1)) == "Explanation(2 generated tokens from 1, model='made/up', generated=' b c')"


def test_reading_a_file_needs_no_table_or_picture_library(tmp_path):
    made_up(list("abc"), 2).save(tmp_path / "a")
    code = f"""if True:
        import sys
        from gradellm_hf import Explanation
        print(Explanation.load({str(tmp_path / "a")!r}).aggregate("word").normalize().top(0, 1, ignore=()))
        assert not {{"pandas", "matplotlib", "rich", "pyarrow"}} & set(sys.modules)
    """
    assert "Contribution" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
