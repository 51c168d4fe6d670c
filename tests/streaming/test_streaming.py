"""`explain_stream` yields what `explain_generate` returns, token by token, and leaves nothing behind."""

import gc
import threading
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from gradellm_hf import GradELLMConfig, InvalidInputError, explain_generate
from gradellm_hf.streaming import ExplainedStep, explain_stream
from tests.support.small_llama import PAD, assert_same_heatmaps, padded_prompts, random_ids, small_llama
from tests.support.tiny_models import tiny_model
from tests.support.versions import CACHE, since

FAVOURITE = 13


class Forbid(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, input_ids[:, -1], -torch.inf)  # no token twice in a row


class StopAfter(StoppingCriteria):
    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


class Collect(BaseStreamer):
    def __init__(self) -> None:
        self.values: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value.tolist())

    def end(self) -> None:
        self.values.append("end")


def assert_streams_the_same(model: Any, **kwargs: Any) -> list[ExplainedStep]:
    torch.manual_seed(5)
    plain = model.generate(**{name: value for name, value in kwargs.items() if name != "explain_config"})
    torch.manual_seed(5)
    out: Any = explain_generate(model, **kwargs)
    torch.manual_seed(5)
    steps = list(explain_stream(model, **kwargs))
    num_steps = out.attributions.shape[1]
    assert [step.step for step in steps] == list(range(num_steps))
    new_tokens = torch.stack([step.token_ids for step in steps], dim=1)
    assert torch.equal(new_tokens, plain[:, plain.shape[1] - num_steps :])
    assert torch.equal(torch.stack([step.step_mask for step in steps], dim=1), out.step_mask)
    for name in ("token_probabilities", "target_scores"):
        assert_same_heatmaps(torch.stack([getattr(step, name) for step in steps], dim=1), out[name])
    for n, step in enumerate(steps):
        seen = out.prompt_length + n
        assert_same_heatmaps(step.attributions, out.attributions[:, n, :seen])
        if out.layer_attributions is not None:
            assert_same_heatmaps(step.layer_attributions, out.layer_attributions[:, :, n, :seen])
    return steps


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"do_sample": True, "temperature": 0.7, "top_k": 20},
        {"do_sample": True, "num_return_sequences": 2},
        {"logits_processor": LogitsProcessorList([Forbid()])},
        {"stopping_criteria": StoppingCriteriaList([StopAfter(12)])},
        {"generation_config": GenerationConfig(max_new_tokens=4, do_sample=True, pad_token_id=PAD)},
        {"use_cache": False},
        {"repetition_penalty": 1.8},
    ],
    ids=lambda kwargs: "+".join(kwargs) or "greedy",
)
def test_a_padded_batch_streams_the_tokens_of_generate_and_the_heatmaps_of_explain_generate(kwargs: dict[str, Any]) -> None:
    length = {} if "generation_config" in kwargs else {"max_new_tokens": 6}
    assert_streams_the_same(small_llama(), **padded_prompts(), **length, **kwargs)


def test_rows_end_at_their_own_end_of_sequence() -> None:
    model, prompts = small_llama(), padded_prompts()
    free = model.generate(**prompts, max_new_tokens=8)[:, 9:]
    end = next(int(t) for t in free[0, 2:] if not (free[1:, :4] == t).any())  # ends the first row before the others
    steps = assert_streams_the_same(model, **prompts, max_new_tokens=8, eos_token_id=end, pad_token_id=PAD)
    ended = next(step for step in steps if not step.step_mask[0])
    assert ended.step_mask[1:].any()
    assert ended.token_ids[0] == PAD
    assert not ended.attributions[0].any()


@pytest.mark.parametrize(
    "config",
    [
        GradELLMConfig(layers=2, target="log_probability", positive_only=False, output_layer_attributions=True),
        GradELLMConfig(spatial="loosened", engine="replay"),
        GradELLMConfig(target="contrast", contrast_token_ids=FAVOURITE),
    ],
    ids=["layers", "loosened", "contrast"],
)
def test_the_configuration_is_that_of_explain_generate(config: GradELLMConfig) -> None:
    assert_streams_the_same(small_llama(), **padded_prompts(), max_new_tokens=4, explain_config=config)


@pytest.mark.filterwarnings("ignore::gradellm_hf.GradELLMWarning")  # `explain_generate` goes stepwise if it must
@pytest.mark.parametrize("family", ["mistral_windowed", "gpt2", "bloom", "qwen3_moe", "lfm2"])
def test_windows_other_attention_and_recurrent_caches_stream_too(family: str) -> None:
    if family == "bloom":
        from transformers import BloomConfig, BloomForCausalLM

        torch.manual_seed(0)
        model: Any = BloomForCausalLM(BloomConfig(vocab_size=53, hidden_size=32, n_layer=3, n_head=4)).eval()
    elif family == "lfm2":
        from transformers import Lfm2Config, Lfm2ForCausalLM

        torch.manual_seed(0)
        sizes = {"vocab_size": 53, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "full_attn_idxs": [1, 3]}
        model = Lfm2ForCausalLM(Lfm2Config(**sizes, **heads, pad_token_id=0)).eval()
    else:
        model = tiny_model(family, dtype=torch.float32)
    ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    assert_streams_the_same(model, input_ids=ids, max_new_tokens=5, eos_token_id=None, pad_token_id=0)


def test_the_paper_preset_streams_though_it_reads_the_projections_of_the_whole_prefix() -> None:
    model = tiny_model("square_llama", dtype=torch.float32)
    assert_streams_the_same(model, input_ids=torch.arange(3, 12)[None], max_new_tokens=4, explain_config=GradELLMConfig.paper())


def test_prompts_given_as_embeddings() -> None:
    model = small_llama()
    explain_generate(model, random_ids(1, 7), max_new_tokens=4)  # the check of the replay engine, on ids
    embeds = model.get_input_embeddings()(random_ids(2, 7)).detach()
    assert_streams_the_same(model, inputs_embeds=embeds, max_new_tokens=5)
    square = tiny_model("square_llama", dtype=torch.float32)
    embeds = square.get_input_embeddings()(torch.arange(3, 9)[None]).detach()
    with pytest.raises(InvalidInputError, match="Pass token ids"):
        explain_stream(square, inputs_embeds=embeds, explain_config=GradELLMConfig.paper(), max_new_tokens=5)


def test_a_cache_that_already_holds_the_start_of_the_prompt_is_used() -> None:
    model, ids = small_llama(), random_ids(1, 9)

    def filled() -> DynamicCache:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :5], **{CACHE: cache})
        return cache

    expected: Any = explain_generate(model, ids, max_new_tokens=3, **{CACHE: filled()})
    steps = list(explain_stream(model, ids, max_new_tokens=3, **{CACHE: filled()}))
    assert_same_heatmaps(steps[-1].attributions, expected.attributions[:, -1, :-1])


@since("5.1", "prompt lookup decoding without an end-of-sequence token")
def test_assisted_decoding_streams_several_tokens_at_once() -> None:
    model, ids = small_llama(), random_ids(1, 3).repeat(1, 3)
    expected: Any = explain_generate(model, ids, max_new_tokens=7)
    steps = list(explain_stream(model, ids, max_new_tokens=7, prompt_lookup_num_tokens=3))
    assert torch.equal(torch.stack([step.token_ids for step in steps], dim=1), expected.sequences[:, 9:])
    for n, step in enumerate(steps):
        assert_same_heatmaps(step.attributions, expected.attributions[:, n, : 9 + n])


@pytest.mark.usefixtures("quiet_transformers")
@since("5.3", "drafts of a model's own first layers that run")
def test_drafts_of_the_models_own_first_layers_are_not_taken_for_what_it_wrote() -> None:
    assert_streams_the_same(small_llama(), inputs=random_ids(1, 9), max_new_tokens=6, assistant_early_exit=2)


@pytest.mark.parametrize("length", [4, 9, 15])
def test_the_cache_of_a_negative_prompt_is_not_taken_for_that_of_the_prompt(length: int) -> None:
    guidance = {"guidance_scale": 1.7, "negative_prompt_ids": random_ids(1, length, seed=4)}
    assert_streams_the_same(small_llama(), inputs=random_ids(1, 9), max_new_tokens=4, **guidance)


def test_a_target_may_run_the_model_itself() -> None:
    model, foreign = small_llama(), random_ids(1, 9, seed=5)

    def target(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        model(foreign, use_cache=True)
        return logits.gather(-1, token_ids[..., None])[..., 0]

    options = {"inputs": random_ids(1, 9), "max_new_tokens": 4}
    expected = list(explain_stream(model, **options))
    steps = list(explain_stream(model, **options, explain_config=GradELLMConfig(target=target)))
    for step, plain in zip(steps, expected, strict=True):
        assert_same_heatmaps(step.attributions, plain.attributions)


def test_a_streamer_of_the_caller_gets_what_generate_gives_it() -> None:
    model, ids = small_llama(), random_ids(1, 5)
    expected, collected = Collect(), Collect()
    model.generate(ids, max_new_tokens=4, streamer=expected)
    assert len(list(explain_stream(model, ids, max_new_tokens=4, streamer=collected))) == 4
    assert collected.values == expected.values


def test_inside_inference_mode() -> None:
    model = small_llama()
    expected: Any = explain_generate(model, **padded_prompts(), max_new_tokens=3)
    with torch.inference_mode():
        steps = list(explain_stream(model, **padded_prompts(), max_new_tokens=3))
    assert_same_heatmaps(steps[2].attributions, expected.attributions[:, 2, :-1])


def test_generate_stands_still_until_the_next_token_is_asked_for_and_ends_when_the_loop_is_left() -> None:
    model, collected = small_llama(), Collect()
    state = torch.get_rng_state()
    threads = threading.active_count()
    stream = explain_stream(model, random_ids(1, 5), max_new_tokens=50, do_sample=True, streamer=collected)
    assert threading.active_count() == threads  # nothing runs before the first token is asked for
    next(stream)
    next(stream)
    assert len(collected.values) == 3  # the prompt and two tokens
    stream.close()
    assert threading.active_count() == threads
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert len(collected.values) == 3
    torch.set_rng_state(state)


def test_an_abandoned_stream_ends_its_thread() -> None:
    threads = threading.active_count()
    for step in explain_stream(small_llama(), random_ids(1, 5), max_new_tokens=50):
        if step.step == 1:
            break
    gc.collect()
    assert threading.active_count() == threads


def test_errors_of_generate_reach_the_loop_and_end_the_thread() -> None:
    class Broken(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if input_ids.shape[1] == 7:
                raise ZeroDivisionError("broken processor")
            return scores

    threads = threading.active_count()
    stream = explain_stream(small_llama(), random_ids(1, 5), max_new_tokens=9, logits_processor=[Broken()])
    assert [next(stream).step, next(stream).step] == [0, 1]
    with pytest.raises(ZeroDivisionError, match="broken processor"):
        next(stream)
    assert threading.active_count() == threads


def test_what_cannot_be_streamed_is_refused_before_anything_runs() -> None:
    model, ids = small_llama(), random_ids(1, 5)
    with pytest.raises(InvalidInputError, match="num_beams=3"):
        explain_stream(model, ids, num_beams=3)
    with pytest.raises(InvalidInputError, match="num_beams=2"):
        explain_stream(model, ids, generation_config=GenerationConfig(num_beams=2))
    with pytest.raises(InvalidInputError, match="explain_config"):
        explain_stream(model, ids, explain_config={"layers": 1})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="padding"):
        explain_stream(model, ids, attention_mask=torch.tensor([[1, 1, 1, 1, 0]]))


def test_a_decoding_loop_that_does_not_stream_is_told_so() -> None:
    def silent(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        model(input_ids)
        return torch.cat([input_ids, input_ids[:, :1]], dim=1)

    with pytest.raises(InvalidInputError, match="did not stream"):
        list(explain_stream(small_llama(), random_ids(1, 5), custom_generate=silent, max_new_tokens=1))


def test_two_streams_of_one_model_run_side_by_side() -> None:
    model = small_llama()
    prompts = [random_ids(1, 6, seed) for seed in (1, 2)]
    streams = [explain_stream(model, ids, max_new_tokens=4) for ids in prompts]
    pairs = list(zip(*streams, strict=True))  # one token of each in turn
    for ids, steps in zip(prompts, zip(*pairs, strict=True), strict=True):
        out: Any = explain_generate(model, ids, max_new_tokens=4)
        assert_same_heatmaps(steps[-1].attributions, out.attributions[:, -1, :-1])
