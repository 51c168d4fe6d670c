"""A model in which something besides attention carries information between tokens is noticed, and explained exactly."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradellm_hf import GradELLMConfig, GradELLMWarning, InvalidInputError, explain_generate, explain_sequences, verify
from gradellm_hf.engines.position_local import PositionLocalAttention
from tests.support.small_llama import assert_same_heatmaps, random_ids, small_llama
from tests.support.versions import CACHE, since

STEPWISE = GradELLMConfig(engine="stepwise")


class AddChunkMean(nn.Module):
    """Adds the mean over the positions of the same forward call: what a chunk computes depends on its size."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.inner(hidden_states) + hidden_states.cumsum(1) / torch.arange(1, hidden_states.shape[1] + 1)[:, None]


class AddPreviousValue(nn.Module):
    """Adds a projection of the previous position's value, taken from the cache: right in every chunk, but no attention."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention
        self.projection = nn.Linear(30, 48, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        output, weights = self.attention(hidden_states=hidden_states, **kwargs)
        cache = kwargs.get(CACHE)
        if cache is None:
            return output, weights
        values = cache.layers[self.attention.layer_idx].values.transpose(1, 2).flatten(2)
        previous = F.pad(values, (0, 0, 1, 0))[:, -hidden_states.shape[1] - 1 : -1]
        return output + self.projection(previous), weights


def with_chunk_mean() -> nn.Module:
    model = small_llama()
    model.model.layers[3].mlp = AddChunkMean(model.model.layers[3].mlp)
    return model


def with_previous_value() -> nn.Module:
    model = small_llama()
    torch.manual_seed(1)
    model.model.layers[3].self_attn = AddPreviousValue(model.model.layers[3].self_attn)
    return model


MIXING = {
    "replaying several tokens at once changes its logits by .* against running one at a time": with_chunk_mean,
    "something besides attention carries information between tokens": with_previous_value,
}


@pytest.mark.parametrize(("reason", "build"), MIXING.items(), ids=["changes its logits", "carries information"])
def test_a_model_that_mixes_tokens_outside_of_attention_is_explained_stepwise(reason, build):
    model, ids = build(), random_ids(2, 12)
    with pytest.warns(GradELLMWarning, match=rf"`llama` is explained with the stepwise engine.*: {reason}"):
        out = explain_sequences(model, ids, 7)
    assert torch.equal(out.attributions, explain_sequences(model, ids, 7, explain_config=STEPWISE).attributions)
    with pytest.warns(GradELLMWarning, match=reason):  # every time
        explain_sequences(model, random_ids(1, 9), 5)


@pytest.mark.filterwarnings("ignore:.*is explained with the stepwise engine")
@pytest.mark.parametrize("config", [GradELLMConfig(), STEPWISE], ids=["replay", "stepwise"])
def test_a_generation_that_cannot_be_repeated_is_not_explained(config):
    model, ids = small_llama(), random_ids(2, 7)
    model.model.layers[1].register_forward_hook(lambda module, args, hidden: hidden + torch.randn_like(hidden))
    explain_sequences(model, ids, 6)  # so that nothing is to be found out about it any more
    torch.manual_seed(0)
    with pytest.raises(InvalidInputError, match=r"logits of new token 0 .* differ from those in `generate`") as raised:
        explain_generate(model, ids, max_new_tokens=1, explain_config=config)
    torch.manual_seed(0)
    assert torch.equal(raised.value.generated.sequences, model.generate(ids, max_new_tokens=1))


def test_a_convolution_that_works_in_a_cache_keeps_its_words():
    """The mixing model of these tests writes the same with and without a cache, so only the gradient can give it away."""
    model, ids = with_previous_value(), random_ids(2, 9)
    with torch.no_grad():
        first = model(ids[:, :5], use_cache=True)
        second = model(ids[:, 5:], **{CACHE: first[CACHE]})
        whole = model(ids, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", MIXING.values(), ids=["changes its logits", "carries information"])
def test_a_single_token_is_exact_without_a_check(build):
    model, ids = build(), random_ids(2, 8)
    out = explain_sequences(model, ids, 7)
    assert_same_heatmaps(out.attributions, explain_sequences(model, ids, 7, explain_config=STEPWISE).attributions)
    with pytest.warns(GradELLMWarning):
        explain_sequences(model, ids, 6)


def test_stepwise_asked_for_is_no_reason_to_warn():
    out = explain_generate(with_previous_value(), random_ids(1, 7), max_new_tokens=4, explain_config=STEPWISE)
    assert out.attributions.sum() > 0


def test_a_model_is_checked_once():
    model, ids, calls = small_llama(), random_ids(2, 9), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))

    def forward_calls() -> int:
        calls.clear()
        explain_sequences(model, ids, 5)
        return len(calls)

    first, second, third = forward_calls(), forward_calls(), forward_calls()
    assert second == third == 2  # the prompt, and the replay
    assert first > second


def test_another_attention_implementation_is_checked_anew():
    model, calls = small_llama(), []
    explain_sequences(model, random_ids(1, 9), 5)
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_attn_implementation("eager")
    eager = explain_sequences(model, random_ids(1, 9), 5)
    assert len(calls) > 2
    assert_same_heatmaps(eager.attributions, explain_sequences(small_llama(), random_ids(1, 9), 5).attributions)


def test_verify_tells_the_models_apart():
    for attention in ("sdpa", "eager"):
        assert verify(small_llama(attention=attention)) < 1e-5
    assert verify(small_llama(dtype=torch.float64)) < 1e-6
    for build in MIXING.values():
        assert verify(build()) > 1e-2


resets = since("5.14", "dynamic rotary embedding that forgets how long an earlier text was")


@pytest.mark.parametrize("rope_type", [pytest.param("dynamic", marks=resets), "default"])
def test_a_rotary_embedding_that_depends_on_the_length_of_a_call_is_followed_step_by_step(rope_type):
    rope = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 10000.0}
    model = small_llama(max_position_embeddings=12, rope_parameters=rope)
    expectation = pytest.warns(GradELLMWarning, match="depends on the length") if rope_type == "dynamic" else nullcontext()
    with expectation:
        out = explain_generate(
            model, random_ids(1, 10), max_new_tokens=6, return_dict_in_generate=True, output_logits=True, eos_token_id=None
        )
    written = torch.stack(out.logits, dim=1).gather(-1, out.sequences[:, 10:, None])[..., 0]
    torch.testing.assert_close(out.target_scores, written)
    explain_generate(model, random_ids(1, 5), max_new_tokens=4)  # short enough: replayed without a warning


@pytest.mark.filterwarnings("error::gradellm_hf.GradELLMWarning")
def test_a_model_that_first_sees_embeddings_is_replayed_all_the_same():
    model, ids = small_llama(), random_ids(1, 7)
    out = explain_generate(model, inputs_embeds=model.get_input_embeddings()(ids).detach(), max_new_tokens=4)
    sequences = torch.cat([ids, out.sequences], dim=1)
    assert_same_heatmaps(out.attributions, explain_sequences(model, sequences, 7).attributions)


def test_a_model_may_be_seen_first_inside_of_inference_mode():
    model, ids = small_llama(), random_ids(1, 7)
    with torch.inference_mode():
        out = explain_generate(model, ids, max_new_tokens=4)
    assert_same_heatmaps(out.attributions, explain_generate(small_llama(), ids, max_new_tokens=4).attributions)


def test_an_error_inside_of_the_replay_is_not_taken_for_a_model_that_cannot_be_replayed(monkeypatch):
    def break_down(ctx, gradient):
        raise RuntimeError("Expected all tensors to be on the same device")

    monkeypatch.setattr(PositionLocalAttention, "backward", break_down)
    with pytest.raises(RuntimeError, match="on the same device"):
        explain_sequences(small_llama(), random_ids(1, 9), 5)


@pytest.mark.filterwarnings("error::gradellm_hf.GradELLMWarning")
@pytest.mark.parametrize("embeds", [False, True], ids=["token ids", "embeddings"])
def test_a_check_that_does_not_fit_in_memory_is_made_in_halves(monkeypatch, embeds):
    model, ids, failures = small_llama(), random_ids(1, 7), []
    options = {"inputs_embeds": model.get_input_embeddings()(ids).detach()} if embeds else {"inputs": ids}
    expected = explain_generate(small_llama(), **options, max_new_tokens=4)
    backward = PositionLocalAttention.backward

    def out_of_memory(ctx, gradient):
        if gradient.shape[2] > 1 and len(failures) < 2:
            failures.append(gradient.shape[2])
            raise torch.OutOfMemoryError("simulated")
        return backward(ctx, gradient)

    monkeypatch.setattr(PositionLocalAttention, "backward", out_of_memory)
    out = explain_generate(model, **options, max_new_tokens=4)
    assert failures[0] == (2 if embeds else 3)
    assert_same_heatmaps(out.attributions, expected.attributions)


@pytest.mark.filterwarnings("error::gradellm_hf.GradELLMWarning")
@pytest.mark.parametrize(
    "suppressed", [-torch.inf, torch.finfo(torch.float32).min, 0], ids=["minus infinity", "lowest", "zero"]
)
def test_logits_that_are_suppressed_or_all_zero_are_no_reason_against_a_replay(suppressed):
    model, ids = small_llama(), random_ids(1, 9)
    which = torch.arange(0, 97) if suppressed == 0 else torch.tensor([0, 50])
    model.lm_head.register_forward_hook(lambda module, args, logits: logits.index_fill(-1, which, suppressed))
    out = explain_sequences(model, ids, 5)
    if suppressed != 0:
        assert_same_heatmaps(out.attributions, explain_sequences(small_llama(), ids, 5).attributions)
