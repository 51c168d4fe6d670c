"""What is known about a model holds for the model as it is now, and what is explained is what `generate` computed."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from gradellm_hf import (
    GradELLMConfig,
    GradELLMWarning,
    InvalidInputError,
    explain_generate,
    explain_sequences,
    explain_stream,
)
from gradellm_hf.sequences.written_logits import LogitsRecording, sample
from tests.engines.test_self_check import with_chunk_mean, with_previous_value
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, random_ids, small_llama
from tests.support.tiny_models import float64_islands
from tests.support.versions import CACHE

STEPWISE = GradELLMConfig(engine="stepwise")
STEERED = {"while it decodes": lambda length: length == 1, "in the prompt": lambda length: length > 1}


def steer(model: nn.Module, when: Callable[[int], bool], layer: int = 2) -> Any:
    """A hook that adds a vector to what a layer computes; it is returned, to be removed."""
    vector = torch.randn(48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def hook(module: nn.Module, args: Any, hidden: Tensor) -> Tensor:
        return hidden + vector.to(hidden.dtype) if when(hidden.shape[1]) else hidden

    return model.model.layers[layer].register_forward_hook(hook)


def read_like_generate(model: nn.Module, sequences: Tensor, prompt_length: int) -> Tensor:
    """The slow truth, `[N, S]`: the prompt in one call, then one token at a time, each by ordinary autograd."""
    model, kept = copy.deepcopy(model), {}
    model.set_attn_implementation("eager")
    layers, num_steps = model.model.layers, sequences.shape[1] - prompt_length

    def keep(layer: int) -> Callable:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            kept[layer] = args[0].detach().requires_grad_() if layer == 0 else args[0]
            return (kept[layer],)

        return hook

    for number, layer in enumerate(layers):
        layer.self_attn.o_proj.register_forward_pre_hook(keep(number))
    heatmap, cache = torch.zeros(num_steps, sequences.shape[1], dtype=torch.float64), None
    for step in range(num_steps):
        end = prompt_length + step
        options = {CACHE: cache, "use_cache": True, "output_attentions": True}
        out = model(sequences[:1, 0 if cache is None else end - 1 : end], **options)
        cache = out[CACHE]
        gradients = torch.autograd.grad(out.logits[0, -1, sequences[0, end]], list(kept.values()))
        for number, gradient in enumerate(gradients):
            values, weights = cache.layers[number].values.detach()[0], out.attentions[number].detach()[0, :, -1]
            heads = gradient[0, -1].view(weights.shape[0], -1)
            products = torch.stack([values[h // (len(heads) // len(values))] @ heads[h] for h in range(len(heads))])
            heatmap[step, :end] += (weights * products).relu().sum(0)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
    return heatmap


@pytest.mark.parametrize("engine", ["replay", "stepwise", "stream"])
@pytest.mark.parametrize("when", STEERED.values(), ids=STEERED.keys())
def test_a_model_steered_after_its_first_explanation_is_explained_as_it_wrote(when, engine):
    model, ids = small_llama(dtype=torch.float64), random_ids(1, 7)
    options = {"max_new_tokens": 5, "do_sample": False}
    explain_generate(model, ids, **options)
    steer(model, when)
    with float64_islands():
        written = model.generate(ids, **options, output_logits=True, return_dict_in_generate=True)
        expected = read_like_generate(model, written.sequences, 7)
        chosen = written.sequences[0, 7:]
        if engine == "stream":
            steps = list(explain_stream(model, ids, **options))
            probabilities = torch.stack([step.token_probabilities[0] for step in steps])
            heatmaps = [torch.nn.functional.pad(step.attributions[0], (0, 12 - step.attributions.shape[1])) for step in steps]
            attributions = torch.stack(heatmaps)
        else:
            warns = pytest.warns(GradELLMWarning, match="stepwise") if engine == "replay" else contextlib.nullcontext()
            with warns:
                out = explain_generate(model, ids, **options, explain_config=GradELLMConfig(engine=engine))
            assert torch.equal(out.sequences, written.sequences)
            probabilities, attributions = out.token_probabilities[0], out.attributions[0]
    expected_probabilities = [x[0].double().softmax(-1)[token].item() for x, token in zip(written.logits, chosen, strict=True)]
    expected_probabilities = torch.tensor(expected_probabilities, dtype=torch.float64)
    torch.testing.assert_close(probabilities.double(), expected_probabilities, rtol=1e-5, atol=1e-6)
    assert_same_heatmaps(
        attributions.double(), expected, 1e-4 if engine == "stream" else 1e-9
    )  # float64 is lifted in one thread


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
@pytest.mark.parametrize("when", STEERED.values(), ids=STEERED.keys())
def test_every_row_of_a_steered_batch_has_the_logits_it_was_written_with(when, options):
    model, prompts = small_llama(), padded_prompts()
    explain_generate(model, **prompts, max_new_tokens=5)
    steer(model, when)
    with pytest.warns(GradELLMWarning, match="stepwise"):
        out = explain_generate(
            model, **prompts, max_new_tokens=5, output_logits=True, output_scores=True, return_dict_in_generate=True, **options
        )
    rows = out.sequences.shape[0]
    computed_in = torch.arange(rows)[:, None].expand(rows, 5) if out.beam_indices is None else out.beam_indices
    chosen = [[out.logits[n][computed_in[r, n], out.sequences[r, 9 + n]] for n in range(5)] for r in range(rows)]
    torch.testing.assert_close(out.target_scores, torch.tensor(chosen), rtol=1e-3, atol=1e-3)


def test_a_hook_that_begins_to_steer_without_being_new_is_noticed_at_the_step_where_it_matters():
    model, ids, switch = small_llama(), random_ids(1, 7), [False]
    steer(model, lambda length: switch[0] and length == 1)
    explain_generate(model, ids, max_new_tokens=5)  # without a warning: it does nothing
    switch[0] = True
    with pytest.warns(GradELLMWarning, match=r"changes the logits of new token 1 by .* against those in `generate`"):
        out = explain_generate(model, ids, max_new_tokens=5)
    written = model.generate(ids, max_new_tokens=5, output_logits=True, return_dict_in_generate=True)
    chosen = torch.stack([x[0, token] for x, token in zip(written.logits, written.sequences[0, 7:], strict=True)])
    torch.testing.assert_close(out.target_scores[0], chosen, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*is explained with the stepwise engine")
@pytest.mark.parametrize("engine", ["replay", "stepwise", "stream"])
def test_a_later_step_that_cannot_be_repeated_is_refused_by_its_number(engine):
    model, ids, calls = small_llama(), random_ids(1, 7), []
    explain_generate(model, ids, max_new_tokens=5)

    def hook(module: nn.Module, args: Any, hidden: Tensor) -> Tensor:
        calls.append(1)
        return hidden + 3 * (len(calls) == 4)  # one call to look at the model, one for the prompt

    model.model.layers[2].register_forward_hook(hook)
    if engine == "stream":
        with pytest.raises(
            InvalidInputError, match=r"logits of new token 1 \(counted from 0\) differ from those in `generate`"
        ):
            for _ in explain_stream(model, ids, max_new_tokens=5):
                pass
        return
    with pytest.raises(InvalidInputError, match=r"logits of new token 2 \(counted from 0\) differ") as raised:
        explain_generate(model, ids, max_new_tokens=5, explain_config=GradELLMConfig(engine=engine))
    assert raised.value.generated.sequences.shape == (1, 12)


def test_a_model_that_reads_differently_at_once_is_explained_with_its_prompt_at_once():
    model, ids = with_chunk_mean().double(), random_ids(1, 7)
    with float64_islands():
        out = explain_generate(model, ids, max_new_tokens=4, explain_config=STEPWISE)
        expected = read_like_generate(model, out.sequences, 7)
    assert torch.equal(out.sequences, model.generate(ids, max_new_tokens=4))
    assert_same_heatmaps(out.attributions[0], expected, 1e-9)


def replace_a_part(model: nn.Module) -> None:
    model.model.layers[3].self_attn = with_previous_value().model.layers[3].self_attn


def replace_a_forward(model: nn.Module) -> None:
    mlp = model.model.layers[3].mlp
    forward = mlp.forward
    mlp.forward = lambda hidden: forward(hidden) + hidden.cumsum(1)


@pytest.mark.parametrize("change", [replace_a_part, replace_a_forward])
def test_a_model_that_was_changed_is_checked_anew(change):
    model, ids = small_llama(), random_ids(2, 12)
    explain_sequences(model, ids, 7)
    change(model)
    with pytest.warns(GradELLMWarning, match="stepwise"):
        out = explain_sequences(model, ids, 7)
    assert torch.equal(out.attributions, explain_sequences(model, ids, 7, explain_config=STEPWISE).attributions)


def test_a_class_that_was_changed_is_checked_anew(monkeypatch):
    model, ids = small_llama(), random_ids(2, 12)
    explain_sequences(model, ids, 7)
    mlp = type(model.model.layers[0].mlp)
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, hidden: forward(self, hidden) + hidden.cumsum(1))
    with pytest.warns(GradELLMWarning, match="stepwise"):
        explain_sequences(model, ids, 7)


def test_a_hook_that_is_taken_away_leaves_a_model_that_is_replayed_again():
    model, ids = small_llama(), random_ids(1, 7)
    handle = steer(model, STEERED["while it decodes"])
    with pytest.warns(GradELLMWarning, match="stepwise"):
        explain_generate(model, ids, max_new_tokens=5)
    handle.remove()
    explain_generate(model, ids, max_new_tokens=5)  # a warning would be an error


def test_suppressed_logits_are_compared_too():
    model, ids = small_llama(), random_ids(1, 7)

    def suppress(module: nn.Module, args: Any, logits: Tensor) -> Tensor:
        return logits.index_fill(-1, torch.tensor([0, 50]), -torch.inf)

    model.lm_head.register_forward_hook(suppress)
    out = explain_generate(model, ids, max_new_tokens=5)
    assert_same_heatmaps(out.attributions, explain_sequences(model, out.sequences, 7).attributions)
    steer(model, STEERED["while it decodes"])
    with pytest.warns(GradELLMWarning, match="stepwise"):
        explain_generate(model, ids, max_new_tokens=5)


def test_logits_that_were_computed_on_another_cache_are_not_those_of_the_generation():
    recording, draft, own, unknown = LogitsRecording(2), DynamicCache(), DynamicCache(), DynamicCache()
    rows = torch.arange(2)[:, None]
    assert recording.written(None, rows, 2, False) is None
    logits = {cache: torch.randn(2, 1, 50) for cache in (draft, own)}
    for cache in (draft, own):
        recording.add(cache, 3, logits[cache])
    assert torch.equal(recording.written(own, rows, 2, False).samples, sample(logits[own]))
    assert torch.equal(recording.written(None, rows, 2, False).samples, sample(logits[draft]))  # the first
    assert recording.written(unknown, rows, 2, False) is None
    assert recording.written(own, rows, 1, False) is None  # calls of another number of rows
    recording.add(None, 3, logits[own])
    assert torch.equal(recording.written(None, rows, 2, False).samples, sample(logits[own]))  # calls without a cache
