"""Memory: what an offloaded model keeps, what a chunk that does not fit leaves behind, and how the chunk size is chosen."""

import copy
import gc
import io
import sys
import weakref
from collections.abc import Mapping

import accelerate
import pytest
import torch

from gradellm_hf import GradELLMConfig, GradELLMError, explain_generate, explain_sequences, explain_stream, verify
from gradellm_hf.architecture.offloading import offload_hook
from gradellm_hf.engines import memory
from gradellm_hf.engines.position_local import PositionLocalAttention
from gradellm_hf.methods import get_method
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, random_ids, small_llama

pytestmark = pytest.mark.slow

CONFIGS = {
    "replay": GradELLMConfig(output_layer_attributions=True),
    "stepwise": GradELLMConfig(engine="stepwise", layers=[1, 4]),
    "paper": GradELLMConfig.paper(layers=3),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request):
    return request.param


class CountedWeights(Mapping):
    """Offloaded weights of which each is a fresh copy when it is loaded, as from a disk; counts how many bytes live at once."""

    def __init__(self, weights, alive):
        self._weights, self._alive = weights, alive

    def __getitem__(self, name):
        weight = self._weights[name].clone()
        self._alive.append((weakref.ref(weight.untyped_storage()), weight.nbytes))
        self._alive[:] = [(ref, size) for ref, size in self._alive if ref() is not None]
        self.peak = max(getattr(self, "peak", 0), sum(size for _, size in self._alive))
        return weight

    def __iter__(self):
        return iter(self._weights)

    def __len__(self):
        return len(self._weights)


def peak_of_loaded_weights(model, run):
    """The most bytes of weights that are in memory at once while `run` runs."""
    alive, maps = [], []
    for module in model.modules():
        if (hook := offload_hook(module)) is not None:
            original = hook.weights_map
            hook.weights_map = CountedWeights(original, alive)
            maps.append((hook, original))
    try:
        run()
        return max(hook.weights_map.peak for hook, _ in maps if hasattr(hook.weights_map, "peak"))
    finally:
        for hook, original in maps:
            hook.weights_map = original


def offloaded(tmp_path):
    """An offloaded model, and the most bytes that may be loaded at once: what generating takes, and one layer."""
    model = accelerate.disk_offload(small_llama(head_dim=8), tmp_path, execution_device=torch.device("cpu"))
    generating = peak_of_loaded_weights(model, lambda: model.generate(**padded_prompts(), max_new_tokens=5))
    assert generating > 0
    layers = small_llama(head_dim=8).model.layers
    return model, generating + max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers)


def test_explaining_an_offloaded_model_holds_no_more_weights_at_once_than_generating_with_it(config, tmp_path):
    model, most = offloaded(tmp_path)
    prompts = {**padded_prompts(), "max_new_tokens": 5}
    for _ in range(2):  # the first time, the model is looked at and checked
        assert peak_of_loaded_weights(model, lambda: explain_generate(model, **prompts, explain_config=config)) <= most
    assert peak_of_loaded_weights(model, lambda: explain_sequences(model, random_ids(2, 11), 6, explain_config=config)) <= most


@pytest.mark.parametrize("run", [verify, lambda model: list(explain_stream(model, random_ids(1, 7), max_new_tokens=3))])
def test_the_first_look_at_an_offloaded_model_does_not_load_it_as_a_whole(run, tmp_path):
    model, most = offloaded(tmp_path)
    assert peak_of_loaded_weights(model, lambda: run(model)) <= most


@pytest.mark.parametrize("name", ["saliency", "input_x_gradient", "integrated_gradients"])
def test_other_gradients_of_an_offloaded_model_do_not_load_it_as_a_whole(name, tmp_path):
    model, most = offloaded(tmp_path)
    ids = random_ids(1, 9)
    scores = []
    assert peak_of_loaded_weights(model, lambda: scores.append(get_method(name)(model, ids, 7))) <= most
    assert_same_heatmaps(scores[0], get_method(name)(small_llama(head_dim=8), ids, 7))


def test_an_offloaded_model_is_left_as_it_was_also_after_an_error(monkeypatch):
    model = accelerate.cpu_offload(small_llama(), execution_device=torch.device("cpu"))
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}

    def fails(*args, **kwargs):
        raise RuntimeError("broken")

    def check():
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
        assert {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()} == hooks
        assert all(parameter.is_meta for parameter in model.parameters())

    explain_sequences(model, random_ids(1, 9), 5)
    check()
    monkeypatch.setattr(PositionLocalAttention, "apply", fails)
    with pytest.raises(RuntimeError, match="broken"):
        explain_sequences(model, random_ids(1, 9), 5)
    check()


class Memory:
    """An allocator that has room for a number of steps, in the attention of a layer: on the way there, or on the way back."""

    def __init__(self, monkeypatch, room, layer, way):
        self.attempts = []
        apply, backward = PositionLocalAttention.apply, PositionLocalAttention.backward
        calls = {"there": 0}

        def counted_apply(anchor, query, *args):
            self.steps = query.shape[2]
            calls["there"] += 1
            if way == "there" and self.steps > room and calls["there"] % 5 == layer:
                self.attempts.append(self.steps)
                calls["there"] = 0
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return apply(anchor, query, *args)

        def counted_backward(ctx, gradient):
            results = backward(ctx, gradient)
            if way == "back" and gradient.shape[2] > room and ctx.record is not None and ctx.record.args == (layer,):
                self.attempts.append(gradient.shape[2])
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to")
            return results

        monkeypatch.setattr(PositionLocalAttention, "apply", counted_apply)
        monkeypatch.setattr(PositionLocalAttention, "backward", staticmethod(counted_backward))


@pytest.mark.parametrize("way", ["there", "back"])
@pytest.mark.parametrize("config", [GradELLMConfig(output_layer_attributions=True), GradELLMConfig(spatial="loosened")])
def test_a_chunk_that_does_not_fit_is_explained_in_halves_with_the_same_result(config, way, monkeypatch):
    model, sequences = small_llama(), random_ids(2, 31)
    expected = explain_sequences(model, sequences, 8, explain_config=config)
    allocator = Memory(monkeypatch, room=6, layer=2, way=way)
    out = explain_sequences(model, sequences, 8, explain_config=config)
    assert allocator.attempts[:2] == [23, 11]  # and then chunks of 5
    assert len(allocator.attempts) == 2
    assert_same_heatmaps(out.attributions, expected.attributions)
    if config.output_layer_attributions:
        assert_same_heatmaps(out.layer_attributions, expected.layer_attributions)


def test_the_paper_preset_survives_a_chunk_that_does_not_fit(monkeypatch):
    model, sequences, config = small_llama(head_dim=8), random_ids(2, 25), GradELLMConfig.paper(layers=5)
    expected = explain_sequences(model, sequences, 8, explain_config=config)
    allocator = Memory(monkeypatch, room=6, layer=3, way="there")
    out = explain_sequences(model, sequences, 8, explain_config=config)
    assert allocator.attempts == [17, 8]
    assert_same_heatmaps(out.attributions, expected.attributions)


def test_where_not_even_one_step_fits_the_error_says_what_to_set(monkeypatch):
    model, sequences = small_llama(), random_ids(3, 13)
    explain_sequences(model, sequences, 8)
    allocator = Memory(monkeypatch, room=0, layer=2, way="back")
    with pytest.raises(GradELLMError, match=r"single step of 3 sequence\(s\) of 13 tokens\. Explain fewer rows.*`device_map"):
        explain_sequences(model, sequences, 8)
    assert allocator.attempts == [5, 2, 1]


def test_what_generate_wrote_is_not_lost_when_memory_runs_out(monkeypatch):
    model, prompt = small_llama(), random_ids(1, 6)
    expected = explain_generate(model, prompt, max_new_tokens=4).sequences
    Memory(monkeypatch, room=0, layer=2, way="there")
    with pytest.raises(GradELLMError, match="Out of memory") as caught:
        explain_generate(model, prompt, max_new_tokens=4)
    assert torch.equal(caught.value.generated.sequences, expected)


def test_less_free_memory_means_smaller_chunks_and_the_same_result(monkeypatch):
    model, sequences = small_llama(), random_ids(2, 40)
    expected = explain_sequences(model, sequences, 6)
    sizes = []
    apply = PositionLocalAttention.apply
    monkeypatch.setattr(PositionLocalAttention, "apply", lambda *args: sizes.append(args[1].shape[2]) or apply(*args))
    explain_sequences(model, sequences, 6)
    assert set(sizes) == {34}
    sizes.clear()
    monkeypatch.setattr(memory, "free_memory", lambda device: 2_000_000)
    out = explain_sequences(model, sequences, 6)
    all_layers = max(sizes)
    assert 1 <= all_layers < 34
    assert_same_heatmaps(out.attributions, expected.attributions)
    sizes.clear()
    explain_sequences(model, sequences, 6, explain_config=GradELLMConfig(layers=1))  # nothing is kept of those below
    assert all_layers < max(sizes)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_only_in_a_terminal_and_only_where_it_takes_long(is_terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal() if is_terminal else io.StringIO())
    with memory.progress_bar(4) as bar:
        bar.update(1)
        assert sys.stderr.getvalue() == ""
        if is_terminal:
            bar.start_t -= 10  # as if it had begun ten seconds ago
            bar.last_print_t -= 10
            bar.update(1)
    assert ("Explaining" in sys.stderr.getvalue()) == is_terminal


def test_the_graph_of_an_offloaded_model_keeps_no_weights():
    """The weights of the lowest layer are gone while those of the highest are differentiated."""
    model = accelerate.cpu_offload(copy.deepcopy(small_llama()), execution_device=torch.device("cpu"))
    loaded = []
    weights_of = {}
    for name, module in model.named_modules():
        if (hook := offload_hook(module)) is not None and name.endswith("down_proj"):
            weights_of[name] = hook.weights_map
            hook.weights_map = CountedWeights(hook.weights_map, loaded)
    alive = []
    backward = PositionLocalAttention.backward

    def watch(ctx, gradient):
        gc.collect()
        alive.append(sum(ref() is not None for ref, _ in loaded))
        return backward(ctx, gradient)

    PositionLocalAttention.backward = staticmethod(watch)
    try:
        explain_sequences(model, random_ids(1, 9), 5)
    finally:
        PositionLocalAttention.backward = staticmethod(backward)
    assert len(weights_of) == 5
    assert len(alive) >= 5
    assert max(alive) <= 1
