"""One set of real weights, read by three families' code: what is computed is the same, so its explanation must be."""

import pytest
import torch
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from gradellm_hf import GradELLMConfig, explain_sequences
from gradellm_hf.demo_model import load_smollm2

pytestmark = pytest.mark.slow

TEXT = (
    "Notes from the lighthouse: the keeper's cat, a grey one called Pepper, sleeps in the lamp room. "
    "Asked for the name of the cat, the keeper answered that it was"
)
ANSWER = " Pepper, and that she never"


def tokens(tokenizer) -> tuple[torch.Tensor, int]:
    prompt = tokenizer(TEXT, return_tensors="pt").input_ids
    answer = tokenizer(ANSWER, return_tensors="pt", add_special_tokens=False).input_ids
    return torch.cat([prompt, answer], dim=1), prompt.shape[1]


@pytest.mark.parametrize("model_class", [MistralForCausalLM, Qwen2ForCausalLM])
def test_the_same_weights_give_the_same_heatmaps_in_another_family(smollm2, model_class):
    llama, tokenizer = smollm2
    assert type(llama) is LlamaForCausalLM
    other, _ = load_smollm2(model_class=model_class)
    assert type(other) is model_class
    for config in (
        GradELLMConfig(output_layer_attributions=True),
        GradELLMConfig(spatial="loosened", positive_only=False, output_layer_attributions=True),
        GradELLMConfig.paper(output_layer_attributions=True),
    ):
        expected, actual = (explain_sequences(model, *tokens(tokenizer), explain_config=config) for model in (llama, other))
        torch.testing.assert_close(actual.target_scores, expected.target_scores, rtol=1e-4, atol=1e-4)
        for name in ("attributions", "layer_attributions"):
            scale = expected[name].abs().max()
            assert scale > 0
            torch.testing.assert_close(actual[name] / scale, expected[name] / scale, rtol=1e-4, atol=1e-5)


def test_the_name_in_the_text_ranks_first_for_its_repetition(smollm2):
    model, tokenizer = smollm2
    token_ids, prompt_length = tokens(tokenizer)
    out = explain_sequences(model, token_ids[:, : prompt_length + 1], prompt_length)
    (named,) = (token_ids[0, :prompt_length] == token_ids[0, prompt_length]).nonzero()[:, 0].tolist()
    scores = out.attributions[0, 0, 1 : prompt_length - 1]  # besides the first token and the one that predicts
    assert scores.argmax() + 1 == named, tokenizer.convert_ids_to_tokens(token_ids[0, scores.topk(5).indices + 1])
