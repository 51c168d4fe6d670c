"""The explained pipeline answers as Transformers' own does, and explains each answer."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import GenerationConfig, TextGenerationPipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from gradellm_hf import GradELLM, GradELLMConfig, InvalidInputError, explain_generate
from gradellm_hf.demo_model import smollm2_folder
from gradellm_hf.pipeline import IMAGE_TASK, TASK, ExplainedTextGenerationPipeline, register_pipeline
from tests.support.small_llama import assert_same_heatmaps, small_llama

PROMPTS = ["The capital of Italy is", "Hello", "One, two, three,"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def small(smollm2: Any) -> tuple[Any, Any]:
    """A small model of random weights, with a real tokenizer."""
    tokenizer = smollm2[1]
    return small_llama(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id), tokenizer


@pytest.fixture(scope="module")
def pipelines(small: tuple[Any, Any]) -> tuple[Any, Any]:
    model, tokenizer = small
    options = {"model": model, "tokenizer": tokenizer, "max_new_tokens": 5, "do_sample": False}
    return TextGenerationPipeline(**options), ExplainedTextGenerationPipeline(**options)


def answers(results: Any) -> tuple[Any, list[Any]]:
    """Results without their explanations, and the explanations in order."""
    if isinstance(results, dict):
        return {name: value for name, value in results.items() if name != "explanation"}, [results["explanation"]]
    parts = [answers(result) for result in results]
    return [plain for plain, _ in parts], [explanation for _, found in parts for explanation in found]


def assert_same_answers(pipelines: tuple[Any, Any], inputs: Any, **kwargs: Any) -> list[Any]:
    """Both pipelines answer the same; returns the explanations."""
    plain, explained = pipelines
    torch.manual_seed(3)
    expected = plain(inputs, **kwargs)
    torch.manual_seed(3)
    actual, explanations = answers(explained(inputs, **kwargs))
    assert actual == expected
    assert explanations
    return explanations


@pytest.mark.parametrize(
    ("inputs", "kwargs"),
    [
        (PROMPTS[0], {}),
        (PROMPTS, {}),
        (PROMPTS, {"batch_size": 2}),
        (PROMPTS, {"batch_size": 3, "num_return_sequences": 2, "do_sample": True}),
        (PROMPTS[0], {"num_beams": 3, "num_return_sequences": 2}),
        (PROMPTS[0], {"return_full_text": False}),
        (PROMPTS[:2], {"return_tensors": True, "batch_size": 2}),
        (PROMPTS[0], {"generation_config": GenerationConfig(max_new_tokens=3, do_sample=True, top_k=5)}),
        (PROMPTS[0], {"max_new_tokens": 20, "stop_sequence": "."}),
        (PROMPTS[0], {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2}),
        (CHAT, {}),
        ([CHAT, CHAT[1:]], {"batch_size": 2, "return_full_text": False}),
        ([*CHAT, {"role": "assistant", "content": "Well, hel"}], {}),
    ],
    ids=lambda value: "+".join(value) or "defaults" if isinstance(value, dict) else type(value).__name__,
)
def test_answers_are_those_of_the_plain_pipeline(pipelines: tuple[Any, Any], inputs: Any, kwargs: dict[str, Any]) -> None:
    assert_same_answers(pipelines, inputs, **kwargs)


def test_an_explanation_holds_the_prompt_and_the_answer_of_its_own_result(pipelines: tuple[Any, Any]) -> None:
    results = pipelines[1](PROMPTS, batch_size=3)
    for prompt, [result] in zip(PROMPTS, results, strict=True):
        explanation = result["explanation"]
        assert explanation.text == result["generated_text"]
        assert "".join(explanation.tokens[: explanation.prompt_length]) == prompt


def test_explanations_of_chats_know_their_messages_in_batches_too(pipelines: tuple[Any, Any], small: tuple[Any, Any]) -> None:
    chats = [CHAT, CHAT[1:], [*CHAT, {"role": "assistant", "content": "Well, hel"}]]
    expected = GradELLM(*small).explain(chats, max_new_tokens=5, do_sample=False)
    for options in ({}, {"batch_size": 3}):
        explanations = answers(pipelines[1](chats, **options))[1]
        assert [explanation.segments for explanation in explanations] == [explanation.segments for explanation in expected]
    sources = explanations[0].sources("message", of="answer")
    assert {source.name for source in sources[0].sources} == {"1. system", "2. user"}


def test_an_explanation_ends_where_a_stop_sequence_ended_its_answer(smollm2: Any) -> None:
    model, tokenizer = smollm2
    tokenizer.padding_side = "left"
    explained = ExplainedTextGenerationPipeline(model=model, tokenizer=tokenizer, max_new_tokens=4, do_sample=False)
    prompts = ["One, two, three, four,", "The capital of Italy is"]
    [[six], [rome]] = explained(prompts, batch_size=2, stop_sequence=" six")
    assert six["explanation"].text == six["generated_text"] == "One, two, three, four, five, six"
    assert rome["explanation"].text == rome["generated_text"]


def test_padded_batches_are_explained_like_single_prompts(pipelines: tuple[Any, Any]) -> None:
    batched = assert_same_answers(pipelines, PROMPTS, batch_size=3)
    for prompt, explanation in zip(PROMPTS, batched, strict=True):
        [single] = assert_same_answers(pipelines, prompt)
        assert_same_heatmaps(explanation.attributions, single.attributions, tolerance=1e-3)


def test_several_answers_have_an_explanation_each(pipelines: tuple[Any, Any]) -> None:
    results = pipelines[1](PROMPTS[:2], batch_size=2, num_return_sequences=3, do_sample=True)
    for result in (result for prompt in results for result in prompt):
        assert result["explanation"].text == result["generated_text"]


def test_datasets_and_generators_stream_through(pipelines: tuple[Any, Any]) -> None:
    def prompts() -> Iterator[str]:
        yield from PROMPTS

    plain, explained = pipelines
    expected = list(plain(prompts()))
    assert answers(explained(prompts()))[0] == expected
    rows = KeyDataset(Dataset.from_dict({"text": PROMPTS}), "text")
    assert answers(list(explained(rows, batch_size=2)))[0] == expected


def test_the_configuration_is_taken_when_made_and_when_called(small: tuple[Any, Any]) -> None:
    model, tokenizer = small
    options = {"max_new_tokens": 3, "do_sample": False}
    made = ExplainedTextGenerationPipeline(
        model=model, tokenizer=tokenizer, explain_config=GradELLMConfig(layers=2), prefix="So: ", **options
    )
    assert made(PROMPTS[0])[0]["explanation"].layers == [3, 4]
    assert made(PROMPTS[0], explain_config=GradELLMConfig(layers=[1]))[0]["explanation"].layers == [1]
    assert made(PROMPTS[0], steps=[-1])[0]["explanation"].explained == [False, False, True]
    explanation = made(PROMPTS[0])[0]["explanation"]
    inputs = tokenizer("So: " + PROMPTS[0], return_tensors="pt")
    out: Any = explain_generate(model, **inputs, **options, explain_config=GradELLMConfig(layers=2))
    assert_same_heatmaps(explanation.attributions, out.attributions[0])
    with pytest.raises(InvalidInputError, match="explain_config"):
        made(PROMPTS[0], explain_config="last layer")


def test_the_task_is_registered_on_demand_and_takes_a_folder_or_a_model(smollm2: Any) -> None:
    try:
        register_pipeline()
        register_pipeline()
        explained = transformers.pipeline(TASK, model=str(smollm2_folder()), device_map="cpu")
        assert type(explained) is ExplainedTextGenerationPipeline
        plain = transformers.pipeline("text-generation", model=smollm2[0], tokenizer=smollm2[1])
        assert_same_answers((plain, explained), PROMPTS[0], max_new_tokens=3)
        model, tokenizer = smollm2
        explained = transformers.pipeline("explained-text-generation", model=model, tokenizer=tokenizer)
        assert_same_answers((plain, explained), PROMPTS[0], max_new_tokens=3, do_sample=True)
    finally:
        for task in (TASK, IMAGE_TASK):
            PIPELINE_REGISTRY.supported_tasks.pop(task, None)


def test_the_task_is_unknown_before_it_is_registered() -> None:
    assert TASK not in PIPELINE_REGISTRY.get_supported_tasks()
