"""The weights of the demo model that the package ships."""

from importlib.resources import files

import pytest
import torch

from gradellm_hf import GradELLMConfig, HeadWeights
from gradellm_hf.jobs.manifest import weights_fingerprint
from gradellm_hf.methods import get_method, grad_ellm

FILE = files("gradellm_hf.calibration") / "smollm2-135m-instruct.safetensors"
# Written for this test: neither of a kind nor of a text that the weights were learned from.
TEXT = "Dear Aunt Rosa, thank you for the green scarf. It is raining here, so I wear it every day. Yours, with the green"


@pytest.fixture
def weights():
    return HeadWeights.load(str(FILE))


def test_they_are_of_the_demo_model_and_did_better_in_kinds_of_text_that_they_had_not_seen(weights, smollm2):
    model, _ = smollm2
    assert weights.fingerprint == weights_fingerprint(model)
    weights.check_model("llama", model.config.num_hidden_layers, model.config.num_attention_heads)
    before, after = weights.report["held_out"]["before"], weights.report["held_out"]["after"]
    for measure in ("rank", "pearson"):
        assert after[measure] > before[measure] + 0.03
    assert len(weights.report["by_fold"]) == 8


def test_heatmaps_with_them_agree_more_with_leaving_tokens_out(weights, smollm2):
    model, tokenizer = smollm2
    ids = tokenizer(TEXT + " scarf", return_tensors="pt")["input_ids"]
    length = ids.shape[1] - 1
    effects = get_method("leave_one_out")(model, ids, length, None)[0, 0, :length]
    default, weighted = (
        grad_ellm(model, ids, length, explain_config=GradELLMConfig(head_weights=given))[0, 0, :length]
        for given in (None, weights)
    )
    default, weighted = (torch.corrcoef(torch.stack([heatmap, effects]))[0, 1] for heatmap in (default, weighted))
    assert weighted > default + 0.05
