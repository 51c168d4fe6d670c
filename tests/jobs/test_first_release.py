"""Folders of the first release are read and continued. They were made with the job that is repeated here."""

import shutil
from pathlib import Path

import pytest
import torch

from gradellm_hf import GradELLMConfig, InvalidInputError, explain_dataset, load_dataset_explanations
from gradellm_hf.evaluation import Settings, evaluate, load_evaluation
from tests.support.dataset_job import contents, texts, tiny_llama
from tests.support.small_llama import assert_same_heatmaps
from tests.support.tiny_tokenizers import byte_level_bpe
from tests.support.versions import since

FOLDERS = Path(__file__).parents[1] / "support" / "version_1"

ROUNDING = {"rtol": 1e-4, "atol": 1e-6}  # in float32, on another processor

#: A job is the same only if the model has the same options of generation.
with_the_same_options = since("5.17", "`max_cache_len` and `use_mtp` among the options of generation, which the folders have")


def explain(folder, **changes):
    job = {
        "tokenizer": byte_level_bpe(),
        "explain_config": GradELLMConfig(positive_part="layer"),
        "batch_size": 2,
        "shard_size": 2,
        "max_new_tokens": 2,
        "do_sample": False,
    }
    return explain_dataset(tiny_llama(), [*texts(2), ""], folder, **{**job, **changes})


def measure(folder, **changes):
    job = {
        "tokenizer": byte_level_bpe(),
        "methods": ["random", "saliency"],
        "metrics": ["deletion", "pi_soft_ns"],
        "settings": Settings(pis=(0.0, 0.5)),
    }
    return evaluate(tiny_llama(), texts(2), folder, **{**job, **changes})


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FOLDERS, tmp_path / "version_1")


@with_the_same_options
def test_explanations_are_continued_with_what_is_missing(folder):
    before = load_dataset_explanations(FOLDERS / "dataset")
    untouched = contents(folder / "dataset")
    explain(folder / "dataset")
    assert contents(folder / "dataset") == untouched
    (folder / "dataset" / "shard-000000.safetensors").unlink()
    found = explain(folder / "dataset")
    assert found.errors == before.errors
    assert list(before.errors) == [2]
    for actual, expected in zip(found[:2], before[:2], strict=True):
        assert actual.tokens == expected.tokens
        assert_same_heatmaps(actual.attributions, expected.attributions)
        torch.testing.assert_close(actual.token_probabilities, expected.token_probabilities, **ROUNDING)


def test_explanations_with_scores_of_another_dtype_are_another_job(folder):
    with pytest.raises(InvalidInputError, match=r"another job.*\n  dtype: there 'float32', here 'float16'\n"):
        explain(folder / "dataset", score_dtype="float16")


@with_the_same_options
def test_an_evaluation_is_continued_with_what_is_missing(folder):
    before = load_evaluation(FOLDERS / "evaluation")
    untouched = contents(folder / "evaluation")
    measure(folder / "evaluation")
    assert contents(folder / "evaluation") == untouched
    records = folder / "evaluation" / "records-00000.jsonl"
    records.write_text(records.read_text().splitlines(keepends=True)[1])
    done = measure(folder / "evaluation")
    assert records.read_text().count("\n") == 2
    for metric in ("deletion", "pi_soft_ns"):
        torch.testing.assert_close(done.values(metric), before.values(metric), **ROUNDING)
    with pytest.raises(InvalidInputError, match=r"another job.*\n  settings\.seed: there 0, here 1\n"):
        measure(folder / "evaluation", settings=Settings(pis=(0.0, 0.5), seed=1))
