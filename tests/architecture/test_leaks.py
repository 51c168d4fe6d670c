"""Nothing of an explanation, and nothing of a model, stays behind: not in success, not in failure, not in a retry."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from gradellm_hf import GradELLMConfig, explain_generate, explain_sequences, explain_stream, verify
from gradellm_hf.engines import replay as replay_engine
from gradellm_hf.engines.position_local import PositionLocalAttention
from tests.support.small_llama import random_ids, small_llama

pytestmark = pytest.mark.slow

IDS = random_ids(2, 7)


def small_bloom() -> BloomForCausalLM:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, eos_token_id=None, pad_token_id=0)
    return BloomForCausalLM(config).eval()


def fail(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    raise ZeroDivisionError("a target that fails")


def generate(model: Any, **options: Any) -> None:
    explain_generate(model, IDS, max_new_tokens=4, explain_config=GradELLMConfig(**options))


def generate_as_published(model: Any) -> None:
    explain_generate(model, IDS, max_new_tokens=4, explain_config=GradELLMConfig.paper())


def fail_in_the_target(model: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        generate(model, target=fail)


def fail_in_the_backward_pass(model: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PositionLocalAttention, "backward", lambda ctx, gradient: fail(gradient, gradient))
        with pytest.raises(ZeroDivisionError):
            generate(model)


def retry_after_out_of_memory(model: Any) -> None:
    backward, failures = PositionLocalAttention.backward, iter([True])

    def out_of_memory_once(ctx: Any, gradient: torch.Tensor) -> Any:
        if next(failures, False):
            raise torch.OutOfMemoryError("simulated")
        return backward(ctx, gradient)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_engine, "chunk_size", lambda *_: 4)
        patch.setattr(PositionLocalAttention, "backward", out_of_memory_once)
        explain_sequences(model, random_ids(2, 11), 7)
    assert next(failures, None) is None


def abandon_a_stream(model: Any) -> None:
    steps = explain_stream(model, IDS, max_new_tokens=4)
    next(steps)
    steps.close()


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "replay": (small_llama, generate),
    "loosened": (small_llama, lambda model: generate(model, spatial="loosened")),
    "stepwise": (small_llama, lambda model: generate(model, engine="stepwise")),
    "published": (lambda: small_llama(head_dim=8), generate_as_published),
    "no interface": (small_bloom, lambda model: generate(model, engine="stepwise")),
    "verify": (small_llama, verify),
    "stream": (small_llama, lambda model: list(explain_stream(model, IDS, max_new_tokens=4))),
    "abandoned stream": (small_llama, abandon_a_stream),
    "failing target": (small_llama, fail_in_the_target),
    "failing backward pass": (small_llama, fail_in_the_backward_pass),
    "out of memory": (small_llama, retry_after_out_of_memory),
}


def num_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize(("build", "explain"), CASES.values(), ids=CASES.keys())
def test_a_model_that_is_let_go_after_its_explanation_is_gone(build, explain):
    model = build()
    explain(model)
    model = weakref.ref(model)
    gc.collect()
    assert model() is None


@pytest.mark.parametrize(("build", "explain"), CASES.values(), ids=CASES.keys())
def test_an_explanation_leaves_no_tensor_behind(build, explain):
    model, storages = build(), []

    def watch(module: torch.nn.Module, args: Any, output: Any) -> None:
        storages.append(weakref.ref((output if isinstance(output, torch.Tensor) else output[0]).untyped_storage()))

    for part in model.modules():  # what the garbage collector cannot see is kept alive by what the model computed
        if part is not model:
            part.register_forward_hook(watch)
    explain(model)
    storages.clear()
    before = num_tensors()
    for _ in range(10):
        explain(model)
    assert num_tensors() <= before
    assert storages
    assert not any(storage() for storage in storages)


def test_a_hundred_explanations_leave_as_little_behind_as_one():
    model = small_llama()
    generate(model)
    before = num_tensors()
    for _ in range(100):
        generate(model)
    assert num_tensors() == before
