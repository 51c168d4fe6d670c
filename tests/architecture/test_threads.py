"""One model, several threads: every one gets what it would get alone."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from gradellm_hf import GradELLMConfig, explain_generate, explain_sequences
from tests.support.small_llama import random_ids, small_llama

ROUNDS = 6


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Threads take turns every few microseconds, so that a race shows; one thread each inside of torch."""
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


def together(*jobs: Callable[[], Any]) -> list[list[Any]]:
    """Runs the jobs at once, each several times."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> list[Any]:
        start.wait()
        return [job() for _ in range(ROUNDS)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(run, job) for job in jobs]]


CONFIGS = [
    GradELLMConfig(),
    GradELLMConfig(layers=2, spatial="loosened"),
    GradELLMConfig(engine="stepwise"),
    GradELLMConfig.paper(),
]


@pytest.mark.parametrize("warm", [True, False], ids=["known model", "model seen for the first time"])
def test_two_threads_explain_at_once(warm):
    def jobs(model):
        return [
            lambda i=i, config=config: explain_generate(model, random_ids(2, 7 + i, i), max_new_tokens=5, explain_config=config)
            for i, config in enumerate(CONFIGS)
        ]

    serial = [job() for job in jobs(small_llama(head_dim=8))]
    model = small_llama(head_dim=8)
    if warm:
        explain_sequences(model, random_ids(1, 9), 5)
    for results, expected in zip(together(*jobs(model)), serial, strict=True):
        for out in results:
            assert torch.equal(out.sequences, expected.sequences)
            torch.testing.assert_close(out.attributions, expected.attributions, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=["replay", "some layers", "stepwise", "paper"])
def test_one_thread_explains_while_another_generates(config):
    model, ids, other = small_llama(head_dim=8), random_ids(2, 8), random_ids(3, 6, seed=1)
    asked = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 8}
    explained, generated = explain_generate(model, ids, max_new_tokens=5, explain_config=config), model.generate(other, **asked)
    explanations, generations = together(
        lambda: explain_generate(model, ids, max_new_tokens=5, explain_config=config), lambda: model.generate(other, **asked)
    )
    for out in explanations:
        torch.testing.assert_close(out.attributions, explained.attributions, rtol=1e-5, atol=1e-5)
    for out in generations:
        assert torch.equal(out.sequences, generated.sequences)
        torch.testing.assert_close(out.logits, generated.logits, rtol=0, atol=0)


def test_one_thread_explains_while_another_trains():
    model, ids = small_llama(head_dim=8), random_ids(2, 8)
    expected = explain_sequences(model, ids, 4)

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(model(ids, labels=ids).loss, model.model.layers[1].self_attn.k_proj.weight)[0]

    alone = gradient()
    explanations, gradients = together(lambda: explain_sequences(model, ids, 4), gradient)
    for out in explanations:
        torch.testing.assert_close(out.attributions, expected.attributions, rtol=1e-5, atol=1e-5)
    for together_ in gradients:
        torch.testing.assert_close(together_, alone, rtol=1e-6, atol=1e-7)


def test_a_generation_survives_the_end_of_another_threads_recording():
    """A thread that is about to call the hooks of the model meets one that was removed meanwhile."""
    model, ids = small_llama(), random_ids(1, 6)
    expected = model.generate(ids, max_new_tokens=3)
    explain_generate(model, ids, max_new_tokens=3)
    entered, released = threading.Event(), threading.Event()

    def generate() -> torch.Tensor:
        handle_thread.append(threading.get_ident())
        return model.generate(ids, max_new_tokens=3)

    def pause(module: Any, args: Any) -> None:
        if threading.get_ident() in handle_thread and not entered.is_set():
            entered.set()
            assert released.wait(30)

    class Meanwhile(BaseStreamer):
        """Lets the other thread enter before the prompt is read, and go on after."""

        def __init__(self) -> None:
            self.future: Any = None

        def put(self, value: torch.Tensor) -> None:
            if self.future is None:
                self.future = pool.submit(generate)
                assert entered.wait(30)
            else:
                released.set()

        def end(self) -> None:
            pass

    handle_thread: list[int] = []
    handle = model.register_forward_pre_hook(pause)
    with ThreadPoolExecutor(1) as pool:
        streamer = Meanwhile()
        out = explain_generate(model, ids, max_new_tokens=3, streamer=streamer)
        generated = streamer.future.result()
    handle.remove()
    assert torch.equal(out.sequences, expected)
    assert torch.equal(generated, expected)
