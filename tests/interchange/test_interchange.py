"""Tables, files of either kind, and Inseq's files, with the real Inseq."""

import json

import pandas
import pytest
import torch
from safetensors.torch import save_file

from gradellm_hf import InvalidInputError, explain_generate
from gradellm_hf.dataset.explanations import FailedPrompt
from gradellm_hf.demo_model import smollm2_folder
from gradellm_hf.interchange import load_explanations, load_inseq, save_inseq, save_parquet, to_dataframe
from gradellm_hf.interchange.inseq import _to_base64
from tests.support.readable import made_up

TOKENS = ["<s>", "The", " cap", "ital", " é", "", " is", " R", "ome", "."]


def explanation(**fields):
    return made_up(TOKENS, 7, special=[True, *[False] * 9], **fields)


def assert_same(first, second, *names):
    for name in (*names, "tokens", "prompt_length", "special", "level", "unit_names", "model_name"):
        assert getattr(first, name) == getattr(second, name), name
    for name in ("attributions", "token_probabilities"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.fixture(scope="module")
def real(smollm2):
    model, tokenizer = smollm2
    inputs = tokenizer("The capital of Italy is", return_tensors="pt")
    return explain_generate(model, **inputs, max_new_tokens=3, do_sample=False)


def test_a_table_has_a_row_for_each_step_and_position_before_it():
    table, whole = explanation().to_dataframe(), explanation()
    assert len(table) == 7 + 8 + 9
    row = table[(table.step == 2) & (table.position == 8)].iloc[0]
    assert (row.generated_token, row.generated_position, row.token) == (".", 9, "ome")
    assert (row.score, row.probability) == (whole.attributions[2, 8], whole.token_probabilities[2])
    assert (row.target_score, row.in_prompt, row.special, row.sequence) == (whole.target_scores[2], False, False, 0)
    assert table[table.special].token.unique().tolist() == ["<s>"]
    assert table.score.sum() == pytest.approx(whole.attributions.sum().item(), rel=1e-5)
    assert not table.isna().any().any()


def test_larger_units_have_a_row_for_themselves():
    words = explanation().aggregate("word")
    table = words.to_dataframe()
    assert table.score.sum() == pytest.approx(words.attributions.sum().item(), rel=1e-5)
    assert ((table.position == table.generated_position) & (table.score > 0)).any()


def test_several_sequences_go_into_one_table():
    table = to_dataframe([explanation(), explanation(target_scores=None)])
    assert table.sequence.value_counts().to_dict() == {0: 24, 1: 24}
    assert table[table.sequence == 1].target_score.isna().all()
    assert list(table.columns) == list(explanation().to_dataframe().columns)


def test_a_parquet_file_holds_the_table(tmp_path):
    save_parquet([explanation(), explanation(seed=1)], tmp_path / "table.parquet")
    pandas.testing.assert_frame_equal(
        pandas.read_parquet(tmp_path / "table.parquet"), to_dataframe([explanation(), explanation(seed=1)])
    )


def test_nothing_to_write_is_an_error(tmp_path):
    for write in (to_dataframe, lambda none: save_inseq(none, tmp_path / "a"), lambda none: save_parquet(none, tmp_path / "a")):
        with pytest.raises(InvalidInputError, match="at least one"):
            write([])


def test_what_is_no_explanation_is_not_written(tmp_path):
    for write in (to_dataframe, lambda x: save_inseq(x, tmp_path / "a"), lambda x: save_parquet(x, tmp_path / "a")):
        for wrong in (None, 5, "text"):
            with pytest.raises(InvalidInputError, match="`explanations` must be an Explanation or a list of them"):
                write(wrong)
        for wrong in (FailedPrompt(1, "b", "InvalidInputError: the prompt is empty"), [explanation()], 5):
            with pytest.raises(
                InvalidInputError, match=rf"`explanations\[1\]` must be an Explanation, got {type(wrong).__name__}"
            ):
                write([explanation(), wrong])
    assert not (tmp_path / "a").exists()
    assert to_dataframe(e for e in (explanation(), explanation())).equals(to_dataframe([explanation()] * 2))


def test_a_file_of_either_kind_is_read(real, smollm2, tmp_path):
    _, tokenizer = smollm2
    (expected,) = real.explanations(tokenizer)
    expected.save(tmp_path / "row")
    real.save(tmp_path / "ids")
    real.save(tmp_path / "tokens", tokenizer)
    assert_same(load_explanations(tmp_path / "row")[0], expected, "token_ids", "explain_config")
    assert_same(load_explanations(tmp_path / "ids", tokenizer)[0], expected, "token_ids", "explain_config")
    (stored,) = load_explanations(tmp_path / "tokens")
    assert stored.tokens == ["The", "Ġcapital", "Ġof", "ĠItaly", "Ġis", "ĠRome", ".", "Ċ"]
    with pytest.raises(InvalidInputError, match="no text without a tokenizer"):
        load_explanations(tmp_path / "ids")


def test_other_files_are_not_read(tmp_path):
    (tmp_path / "text").write_text("hello")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(InvalidInputError, match=f"{name}.*ExplainGenerateOutput.save` wrote"):
            load_explanations(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_explanations(tmp_path / "nowhere")


def test_inseq_opens_and_shows_what_was_written(tmp_path, capsys):
    inseq = pytest.importorskip("inseq")
    first, words = explanation(), explanation().aggregate("word")
    save_inseq([first, words], tmp_path / "ours.json")
    out = inseq.FeatureAttributionOutput.load(tmp_path / "ours.json")
    assert len(out) == 2
    assert [token.token for token in out[0].target] == TOKENS
    assert [token.token for token in out[0].source] == TOKENS[:7]
    assert [token.id for token in out[0].target] == first.token_ids
    assert torch.equal(out[0].target_attributions.nan_to_num(), first.attributions.T)
    assert out[0].target_attributions.isnan().sum(0).tolist() == [3, 2, 1]
    assert torch.equal(out[0].step_scores["probability"], first.token_probabilities)
    assert torch.equal(out[0].aggregate().target_attributions.nan_to_num(), first.attributions.T)
    html = out.show(display=False, return_html=True)
    assert "ital" in html
    out.show()
    assert f"{first.attributions[0, 3]:.2f}".rstrip("0") in capsys.readouterr().out
    out.save(tmp_path / "theirs.json")
    for name in ("ours.json", "theirs.json"):
        for actual, expected in zip(load_inseq(tmp_path / name), [first, words], strict=True):
            assert_same(actual, expected, "token_ids")
            assert torch.equal(actual.target_scores, expected.target_scores)


def test_what_inseq_computed_is_read(smollm2, tmp_path):
    inseq = pytest.importorskip("inseq")
    _, tokenizer = smollm2
    model = inseq.load_model(str(smollm2_folder()), "saliency")
    text = "The capital of Italy is"
    out = model.attribute(
        text, generation_args={"max_new_tokens": 3}, step_scores=["probability"], show_progress=False, pretty_progress=False
    )
    out.save(tmp_path / "theirs.json")
    (plain,), (read,) = load_inseq(tmp_path / "theirs.json"), load_inseq(tmp_path / "theirs.json", tokenizer)
    assert plain.tokens == ["The", "Ġcapital", "Ġof", "ĠItaly", "Ġis", "ĠRome", ".", "Ċ"]
    assert read.text == "The capital of Italy is Rome.\n"
    assert read.prompt_length == 5
    assert torch.equal(read.token_probabilities, out[0].step_scores["probability"])
    norms = out[0].target_attributions.norm(dim=-1)
    assert norms.isnan().any()
    torch.testing.assert_close(read.attributions, norms.nan_to_num().T)


def test_files_that_are_not_inseqs(tmp_path):
    (tmp_path / "text").write_text("no json")
    (tmp_path / "list").write_text("[]")
    (tmp_path / "other").write_text(json.dumps({"__instance_type__": ["a", "b"]}))
    for name in ("text", "list", "other"):
        with pytest.raises(InvalidInputError, match=f"{name}.*of Inseq wrote"):
            load_inseq(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_inseq(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_scores": {}}, r"step_scores=\[\"probability\"\]"),
        ({"source_attributions": "AAAA"}, "encoder-decoder"),
        ({"target_attributions": _to_base64(torch.zeros(10, 3, 2, 4))}, "every layer or head"),
    ],
)
def test_what_inseqs_files_must_hold(change, message, tmp_path):
    save_inseq(explanation(), tmp_path / "a")
    content = json.loads((tmp_path / "a").read_text())
    content["attributes"]["sequence_attributions"][0]["attributes"] |= change
    (tmp_path / "a").write_text(json.dumps(content))
    with pytest.raises(InvalidInputError, match=message):
        load_inseq(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["sequence_attributions"][0]["__instance_type__"].append("x"), "__instance_type__.* a list of 2"),
        (lambda file: file["sequence_attributions"][0]["__instance_type__"].pop(), "__instance_type__.* a list of 2"),
        (lambda file: _doubled(file["sequence_attributions"][0]["attributes"]["target"]), "`target` must have the 10 tokens"),
        (lambda file: file["sequence_attributions"][0]["attributes"]["target"].pop(), "`target` must have the 10 tokens"),
        (lambda file: _renamed(file["sequence_attributions"][0]["attributes"]["step_scores"]), r"names \['target_score'\]"),
    ],
    ids=["a type of three", "a type of one", "a token twice", "a token less", "a score of another name"],
)
def test_what_does_not_fit_together_in_inseqs_files(change, message, tmp_path):
    save_inseq(explanation(), tmp_path / "a")
    content = json.loads((tmp_path / "a").read_text())
    change(content["attributes"])
    (tmp_path / "a").write_text(json.dumps(content))
    with pytest.raises(InvalidInputError, match=f"(?s)'.*a'.*{message}"):
        load_inseq(tmp_path / "a")


def _doubled(tokens):
    tokens.insert(2, tokens[2])


def _renamed(scores):
    scores["target_s"] = scores.pop("target_score")
