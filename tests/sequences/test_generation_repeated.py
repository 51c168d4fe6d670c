"""What `generate` did is what is explained: nothing of the call is lost on the way, or it is refused."""

import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    FalconConfig,
    MistralConfig,
    MistralForCausalLM,
    StoppingCriteria,
)

from gradellm_hf import GradELLMConfig, InvalidInputError, explain_generate, explain_sequences
from tests.support.small_llama import PAD, assert_same_heatmaps, padded_prompts, random_ids, small_llama
from tests.support.versions import CACHE


class EndRow(StoppingCriteria):
    """Ends the first row after its first new token."""

    def __init__(self, prompt_length: int):
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        rows = torch.arange(input_ids.shape[0])
        return (rows == 0) & (input_ids.shape[1] > self.prompt_length)


def test_the_scores_are_the_logits_that_generate_chose_from():
    model = small_llama()
    out = explain_generate(
        model, **padded_prompts(), max_new_tokens=5, return_dict_in_generate=True, output_logits=True, eos_token_id=None
    )
    written = torch.stack(out.logits, dim=1).gather(-1, out.sequences[:, out.prompt_length :, None])[..., 0]
    torch.testing.assert_close(out.target_scores, written, rtol=1e-4, atol=1e-4)


def test_padding_behind_a_row_that_a_stopping_criterion_ended_is_not_explained():
    model, ids = small_llama(), random_ids(2, 6)
    out = explain_generate(model, ids, max_new_tokens=5, stopping_criteria=[EndRow(6)], eos_token_id=95, pad_token_id=PAD)
    assert out.sequences[0, 7:].tolist() == [PAD] * 4
    assert out.step_mask.tolist() == [[True, False, False, False, False], [True] * 5]
    assert out.attributions[0, 1:].abs().max() == 0


def test_a_prompt_in_a_cache_whose_window_has_moved_on_is_read_again_at_its_own_positions():
    ids, values = random_ids(1, 12), small_llama().config.to_dict()
    for name in ("model_type", "architectures"):
        values.pop(name, None)
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**{**values, "sliding_window": 5})).eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :9], use_cache=True, **{CACHE: cache})
    out = explain_generate(model, ids, max_new_tokens=4, **{CACHE: cache})
    assert_same_heatmaps(out.attributions, explain_sequences(model, out.sequences, 12).attributions)


def test_adapters_by_row_are_refused():
    model = get_peft_model(small_llama(), LoraConfig(r=2, target_modules=["q_proj"])).eval()
    with pytest.raises(InvalidInputError, match=r"`adapter_names` gives each row an adapter of its own"):
        explain_generate(model, random_ids(2, 5), adapter_names=["default", "__base__"], max_new_tokens=2)


def test_dropout_left_on_in_a_part_of_the_model_is_refused():
    model = small_llama(attention_dropout=0.5)
    model.model.layers[1].train()
    with pytest.raises(InvalidInputError, match=r"model\.layers\.1\.self_attn is in training mode"):
        explain_generate(model, random_ids(1, 5), max_new_tokens=2)


def test_a_target_may_run_the_model_itself():
    model, ids = small_llama(head_dim=8), random_ids(2, 9)
    foreign = random_ids(1, 4, seed=5)

    def target(logits: Tensor, token_ids: Tensor) -> Tensor:
        model(foreign)
        explain_sequences(model, foreign, 2)
        return logits.gather(-1, token_ids[..., None])[..., 0]

    for config in (GradELLMConfig, GradELLMConfig.paper):
        expected = explain_sequences(model, ids, 6, explain_config=config())
        out = explain_sequences(model, ids, 6, explain_config=config(target=target))
        assert_same_heatmaps(out.attributions, expected.attributions, tolerance=1e-6)


def test_a_loop_that_returns_only_the_new_tokens_is_refused():
    def only_new(model, input_ids, **kwargs):
        model(input_ids)
        return input_ids[:, :4] + 1

    with pytest.raises(InvalidInputError, match="do not start with the prompt"):
        explain_generate(small_llama(), random_ids(1, 3), custom_generate=only_new)


def test_a_mask_with_a_gap_behind_a_rows_end_is_refused():
    model, ids = small_llama(), random_ids(1, 8)
    with pytest.raises(InvalidInputError, match=r"continuation of row\(s\) \[0\], `attention_mask` has a 1 behind a 0"):
        explain_sequences(model, ids, 4, torch.tensor([[1, 1, 1, 1, 1, 0, 1, 1]]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_nothing_that_is_returned_keeps_a_graph(attention, engine):
    model = small_llama(attention=attention)
    config = GradELLMConfig(engine=engine, output_layer_attributions=True)
    out = explain_generate(model, random_ids(2, 6), max_new_tokens=4, explain_config=config)
    assert not any(value.requires_grad for value in out.values() if isinstance(value, Tensor))


def test_threads_that_switch_the_attention_implementation_leave_it_as_it_was():
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(config).eval()
    stepwise, results = GradELLMConfig(engine="stepwise"), []
    expected = explain_sequences(model, random_ids(1, 12), 6, explain_config=stepwise).attributions

    def work() -> None:
        for _ in range(5):
            results.append(explain_sequences(model, random_ids(1, 12), 6, explain_config=stepwise).attributions)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.config._attn_implementation == "sdpa"
    assert len(results) == 15
    for result in results:
        assert_same_heatmaps(result, expected)


def test_layers_that_were_replaced_since_the_last_call_are_found():
    model, ids = small_llama(), random_ids(1, 8)
    explain_sequences(model, ids, 5)
    other = small_llama(seed=1)
    model.model.layers = other.model.layers
    with torch.no_grad():
        other.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight)
        other.lm_head.weight.copy_(model.lm_head.weight)
    assert_same_heatmaps(explain_sequences(model, ids, 5).attributions, explain_sequences(other, ids, 5).attributions)


@pytest.mark.parametrize(
    "prompt", [[1, 2, 3], torch.tensor([1, 2, 3]), {"input_ids": torch.tensor([[1, 2]])}, "text"], ids=type
)
def test_a_prompt_that_is_not_a_batch_of_token_ids_is_refused(prompt):
    with pytest.raises(InvalidInputError, match=r"Expected the prompt as token ids of shape \[batch, P\].*, got"):
        explain_generate(small_llama(), prompt, max_new_tokens=2)
