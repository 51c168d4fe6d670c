"""Arguments by their old names: they work for one release, and the warning names the new one and the line to change."""

import inspect

import pytest
import torch

from gradellm_hf import GradELLM, GradELLMConfig, InvalidInputError, explain_dataset
from gradellm_hf.methods import grad_ellm
from gradellm_hf.metrics import deletion, insertion
from tests.support.small_llama import random_ids, small_llama
from tests.support.tiny_tokenizers import byte_level_bpe

LAST = GradELLMConfig(layers=1)
IDS = random_ids(2, 9)
HEATMAPS = torch.rand(2, 4, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    tokenizer = byte_level_bpe()
    small_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def explained_by_default(model):
    return model.generate(IDS, max_new_tokens=2, do_sample=False).attributions


# A call, the old and the new name of an argument in it, and its value.
RENAMED = {
    "GradELLM": (lambda f, **named: explained_by_default(GradELLM(small_llama(), **named)), "config", "explain_config", LAST),
    "GradELLM.from_pretrained": (
        lambda f, **named: explained_by_default(GradELLM.from_pretrained(f / "model", **named)),
        "config",
        "explain_config",
        LAST,
    ),
    "explain_dataset": (
        lambda f, **named: (
            explain_dataset(
                GradELLM(small_llama(vocab_size=len(byte_level_bpe())), byte_level_bpe()),
                ["The capital"],
                f / f"job{'-'.join(map(str, named.values()))}",
                max_new_tokens=2,
                do_sample=False,
                **named,
            )[0].attributions
        ),
        "dtype",
        "score_dtype",
        "float16",
    ),
    "deletion": (lambda f, **named: deletion(small_llama(), IDS, 5, HEATMAPS, **named), "num_steps", "num_portions", 2),
    "insertion": (lambda f, **named: insertion(small_llama(), IDS, 5, HEATMAPS, **named), "num_steps", "num_portions", 2),
    "grad_ellm": (lambda f, **named: grad_ellm(small_llama(), IDS, 5, **named), "config", "explain_config", LAST),
}


@pytest.mark.parametrize("name", RENAMED)
def test_an_old_name_means_what_the_new_one_means(name, folder):
    call, old, new, value = RENAMED[name]
    expected = call(folder, **{new: value})
    assert not torch.equal(call(folder), expected)
    with pytest.warns(FutureWarning, match=f"^`{old}` is called `{new}` now; the next release no longer knows") as found:
        actual = call(folder, **{old: value})
    assert torch.equal(actual, expected)
    assert [warning.filename for warning in found if warning.category is FutureWarning] == [__file__]


@pytest.mark.parametrize("name", RENAMED)
def test_both_names_at_once_are_an_error(name, folder):
    call, old, new, value = RENAMED[name]
    with pytest.raises(InvalidInputError, match=f"`{new}`"):
        call(folder, **{old: value, new: value})


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        (GradELLM, "config", "explain_config"),
        (grad_ellm, "config", "explain_config"),
        (explain_dataset, "dtype", "score_dtype"),
        (deletion, "num_steps", "num_portions"),
        (insertion, "num_steps", "num_portions"),
    ],
)
def test_a_signature_shows_the_new_name_alone(function, old, new):
    names = inspect.signature(function).parameters
    assert new in names
    assert old not in names
