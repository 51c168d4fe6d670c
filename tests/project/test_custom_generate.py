"""The repository in `custom_generate/`: `model.generate(..., custom_generate=<folder>)` explains."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, dynamic_module_utils

from gradellm_hf import ExplainGenerateOutput, GradELLMConfig, explain_generate
from tests.support import ROOT
from tests.support.small_llama import padded_prompts, random_ids, small_llama
from tests.support.versions import since

REPOSITORY = ROOT / "custom_generate"
CALL = {"custom_generate": str(REPOSITORY), "trust_remote_code": True}


@pytest.fixture(autouse=True)
def _own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3}, {"explain_config": GradELLMConfig(layers=2)}],
    ids=["greedy", "sampling", "beams", "configured"],
)
def test_the_folder_explains_what_generate_writes(kwargs: dict[str, Any]) -> None:
    model, kwargs = small_llama(), {**padded_prompts(), "max_new_tokens": 5, **kwargs}
    torch.manual_seed(2)
    expected = explain_generate(model, **kwargs)
    torch.manual_seed(2)
    out: Any = model.generate(**kwargs, **CALL)
    assert isinstance(out, ExplainGenerateOutput)
    for name in ("sequences", "attributions", "step_mask", "token_probabilities"):
        assert torch.equal(out[name], expected[name])
    assert out.layers == expected.layers
    assert isinstance(model.generate(**padded_prompts(), max_new_tokens=2), torch.Tensor)  # as before, without the folder


def test_beside_a_models_weights_it_becomes_the_models_own_generate(tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "model")
    shutil.copytree(REPOSITORY / "custom_generate", tmp_path / "model" / "custom_generate")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    ids = random_ids(1, 6)
    expected: Any = explain_generate(small_llama(), ids, max_new_tokens=4)
    for out in (model.generate(ids, max_new_tokens=4), model.generate(input_ids=ids, max_new_tokens=4)):
        assert torch.equal(out.sequences, expected.sequences)
        torch.testing.assert_close(out.attributions, expected.attributions)


@since("5.17", "need of trust for code in a local folder")
def test_without_trust_nothing_of_it_runs() -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        small_llama().generate(random_ids(1, 4), max_new_tokens=2, custom_generate=str(REPOSITORY), trust_remote_code=False)


def test_the_repository_has_what_transformers_looks_for() -> None:
    assert (REPOSITORY / "custom_generate" / "requirements.txt").read_text().startswith("gradellm-hf")
    card = (REPOSITORY / "README.md").read_text()
    assert "- custom_generate" in card.split("---")[1]  # the tag by which the Hub finds it


def test_the_example_of_its_card_runs(smollm2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = smollm2
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name: model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: tokenizer)
    code = (REPOSITORY / "README.md").read_text().split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["out"].attributions.shape == (1, 8, scope["inputs"].input_ids.shape[1] + 8)
