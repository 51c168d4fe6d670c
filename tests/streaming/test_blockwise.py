"""`explain_stream(every=k)`: tokens at once, heatmaps in blocks of k, together what `explain_generate` returns."""

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

from gradellm_hf import ExplainedStep, GradELLM, GradELLMConfig, InvalidInputError, explain_generate, explain_stream
from gradellm_hf.engines.explain import explain
from tests.support.small_llama import PAD, assert_same_heatmaps, padded_prompts, random_ids, small_llama
from tests.support.tiny_models import float64_islands, tiny_model
from tests.support.versions import since


def together(steps: list[ExplainedStep], name: str) -> torch.Tensor:
    return torch.stack([getattr(step, name) for step in steps], dim=1)


def assert_blocks_hold_the_same(model: Any, every: int, **kwargs: Any) -> list[ExplainedStep]:
    torch.manual_seed(5)
    out: Any = explain_generate(model, **kwargs)
    torch.manual_seed(5)
    steps = list(explain_stream(model, every=every, **kwargs))
    num_steps = out.attributions.shape[1]
    assert [step.step for step in steps] == list(range(num_steps))
    assert torch.equal(together(steps, "token_ids"), out.sequences[:, out.sequences.shape[1] - num_steps :])
    assert torch.equal(together(steps, "step_mask"), out.step_mask)
    for name in ("token_probabilities", "target_scores"):
        assert_same_heatmaps(together(steps, name), out[name])
    for n, step in enumerate(steps):
        assert_same_heatmaps(step.attributions, out.attributions[:, n, : out.prompt_length + n])
        if out.layer_attributions is not None:
            assert step.layer_attributions is not None
            assert_same_heatmaps(step.layer_attributions, out.layer_attributions[:, :, n, : out.prompt_length + n])
    return steps


@pytest.fixture
def explained_in_float64(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """The heatmaps that are computed from now on, in float64 to the last island of float32."""
    computed: list[Any] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        with float64_islands():
            computed.append(explain(*args, **kwargs))
        return computed[-1]

    monkeypatch.setattr("gradellm_hf.generation.explain", watched)
    monkeypatch.setattr("gradellm_hf.streaming.stream.explain", watched)
    return lambda: [computed.pop(0) for _ in range(len(computed))]


@pytest.mark.parametrize("family", ["llama", "mistral_windowed", "qwen2_windowed", "qwen3", "gpt2"])
@pytest.mark.parametrize("rows", [1, 3])
def test_blocks_are_explained_exactly_as_the_whole_text(family: str, rows: int, explained_in_float64: Any) -> None:
    model = tiny_model(family)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "pad_token_id": 0}
    inputs = {"input_ids": random_ids(rows, 7) % 40}
    if rows > 1:
        inputs["attention_mask"] = torch.ones(rows, 7).long()
        inputs["attention_mask"][1, :3] = 0
    torch.manual_seed(3)
    explain_generate(model, **inputs, **options)
    (whole,) = explained_in_float64()
    torch.manual_seed(3)
    list(explain_stream(model, **inputs, **options, every=3))
    blocks = explained_in_float64()
    assert [block.attributions.shape[1] for block in blocks] == [3, 3, 2]
    for first, block in zip((0, 3, 6), blocks):
        steps = slice(first, first + block.attributions.shape[1])
        expected = whole.attributions[:, steps, : block.attributions.shape[2]]
        torch.testing.assert_close(block.attributions, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
        torch.testing.assert_close(block.target_scores, whole.target_scores[:, steps], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("every", [2, 3, 6, 99])
def test_a_padded_batch_is_the_same_in_blocks_of_any_size(every: int) -> None:
    config = GradELLMConfig(layers=2, target="log_probability", positive_only=False, output_layer_attributions=True)
    assert_blocks_hold_the_same(small_llama(), every, **padded_prompts(), max_new_tokens=6, explain_config=config)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": True, "num_return_sequences": 2},
        {"use_cache": False},
        {"explain_config": GradELLMConfig(engine="stepwise")},
        {"explain_config": GradELLMConfig(target="contrast", contrast_token_ids=13)},
    ],
    ids=lambda kwargs: "+".join(map(str, kwargs)),
)
def test_other_ways_to_generate_and_to_explain_work_in_blocks(kwargs: dict[str, Any]) -> None:
    assert_blocks_hold_the_same(small_llama(), 4, **padded_prompts(), max_new_tokens=6, **kwargs)


def test_prompts_of_embeddings_and_the_paper_preset_work_in_blocks() -> None:
    model = small_llama()
    explain_generate(model, random_ids(1, 7), max_new_tokens=4)  # the check of the replay engine, on ids
    embeds = model.get_input_embeddings()(random_ids(2, 7)).detach()
    assert_blocks_hold_the_same(model, 3, inputs_embeds=embeds, max_new_tokens=5)
    square = tiny_model("square_llama", dtype=torch.float32)
    options = {"max_new_tokens": 5, "pad_token_id": 0, "explain_config": GradELLMConfig.paper()}
    assert_blocks_hold_the_same(square, 3, input_ids=torch.arange(3, 12)[None], **options)


@pytest.mark.filterwarnings("ignore::gradellm_hf.GradELLMWarning")
def test_a_model_that_cannot_be_replayed_is_explained_stepwise_in_blocks() -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 53, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "full_attn_idxs": [1, 3]}
    model = Lfm2ForCausalLM(Lfm2Config(**sizes, **heads, pad_token_id=0)).eval()
    assert_blocks_hold_the_same(model, 2, input_ids=random_ids(2, 7) % 40, max_new_tokens=5, eos_token_id=None)


@since("5.1", "prompt lookup decoding without an end-of-sequence token")
def test_several_tokens_that_come_at_once_are_put_into_blocks() -> None:
    model, ids = small_llama(), random_ids(1, 3).repeat(1, 3)
    expected: Any = explain_generate(model, ids, max_new_tokens=7)
    steps = list(explain_stream(model, ids, max_new_tokens=7, prompt_lookup_num_tokens=3, every=4))
    for n, step in enumerate(steps):
        assert_same_heatmaps(step.attributions, expected.attributions[:, n, : 9 + n])


def test_rows_that_end_inside_a_block_have_no_scores_from_there_on() -> None:
    model, prompts = small_llama(), padded_prompts()
    free = model.generate(**prompts, max_new_tokens=8)[:, 9:]
    end = next(int(t) for t in free[0, 2:] if not (free[1:, :4] == t).any())  # ends the first row before the others
    steps = assert_blocks_hold_the_same(model, 5, **prompts, max_new_tokens=8, eos_token_id=end, pad_token_id=PAD)
    assert any(not step.step_mask[0] and step.step_mask[1:].any() and not step.attributions[0].any() for step in steps)


def test_a_token_waits_for_no_explanation_and_its_block_is_explained_before_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    explained: list[int] = []

    def watched(facts: Any, block: Any, *args: Any) -> Any:
        explained.append(block.num_steps)
        return explain(facts, block, *args)

    monkeypatch.setattr("gradellm_hf.streaming.stream.explain", watched)
    stream = explain_stream(small_llama(), random_ids(1, 5), max_new_tokens=5, every=2)
    steps = [next(stream), next(stream)]
    assert explained == []
    assert not any(step.is_explained for step in steps)
    with pytest.raises(InvalidInputError, match="Step 1 is not explained yet"):
        _ = steps[1].attributions
    steps.append(next(stream))
    assert explained == [2]
    assert [step.is_explained for step in steps] == [True, True, False]
    steps += stream
    assert explained == [2, 2, 1]
    assert all(step.is_explained for step in steps)


def test_a_loop_that_is_left_early_leaves_the_model_as_it_was_and_its_last_block_unexplained() -> None:
    model, threads = small_llama(), threading.active_count()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    stream: Iterator[ExplainedStep] = explain_stream(model, random_ids(1, 5), max_new_tokens=50, every=3)
    steps = [next(stream) for _ in range(5)]
    stream.close()  # type: ignore[attr-defined]
    assert [step.is_explained for step in steps] == [True, True, True, False, False]
    del stream
    gc.collect()
    assert threading.active_count() == threads
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert {name: vars(module) for name, module in model.named_modules()} == before
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_an_error_of_generate_comes_after_the_tokens_before_it() -> None:
    def broken(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == 8:
            raise ZeroDivisionError("broken processor")
        return scores

    stream = explain_stream(
        small_llama(), random_ids(1, 5), max_new_tokens=9, logits_processor=LogitsProcessorList([broken]), every=2
    )
    steps = [next(stream), next(stream), next(stream)]
    with pytest.raises(ZeroDivisionError, match="broken processor"):
        next(stream)
    assert [step.is_explained for step in steps] == [True, True, False]


@pytest.mark.parametrize("every", [0, -1, 2.0, True, "16", None])
def test_blocks_of_no_number_of_tokens_are_refused(every: Any) -> None:
    with pytest.raises(InvalidInputError, match="`every` must be an int of at least 1"):
        explain_stream(small_llama(), random_ids(1, 5), every=every)


def test_a_chat_streams_in_blocks_too() -> None:
    from tests.support.evaluated import model_and_tokenizer

    explainer = GradELLM(*model_and_tokenizer())
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    whole = explainer.explain("The capital of Italy is", **options)
    steps = list(explainer.stream("The capital of Italy is", every=3, **options))
    assert_same_heatmaps(steps[-1].attributions[0], torch.as_tensor(whole.attributions)[len(steps) - 1, :-1].float())
