"""What explanations change of objects that several threads share: changed once, put back by whoever leaves last."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gradellm_hf import GradELLMConfig, explain_sequences
from gradellm_hf.architecture import quantization
from gradellm_hf.architecture.plain_attention import attention_implementation
from gradellm_hf.architecture.running import explainable
from gradellm_hf.architecture.switches import shared
from gradellm_hf.methods.path_methods import _rescaled_activations
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, random_ids, small_llama

WAIT = 60  # seconds after which a test has failed


class Thing:
    """What a context changes: its value, and how often it was changed and changed back."""

    def __init__(self) -> None:
        self.value, self.changes, self.is_free = 0, 0, threading.Event()
        self.is_free.set()


@shared
@contextmanager
def changed(thing: Thing) -> Iterator[str]:
    before = thing.value
    assert thing.is_free.wait(WAIT)
    thing.value, thing.changes = 1, thing.changes + 1
    try:
        yield "given"
    finally:
        thing.value = before


def test_a_context_is_entered_once_for_all_who_nest_it():
    thing, other = Thing(), Thing()
    with changed(thing) as outer:
        with changed(thing) as inner, changed(other):
            assert (thing.value, other.value) == (1, 1)
        assert (thing.value, other.value) == (1, 0)
    assert (thing.value, thing.changes, other.changes) == (0, 1, 1)
    assert outer == inner == "given"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_last_of_several_threads_to_leave_puts_the_value_back(order):
    thing, entered = Thing(), threading.Barrier(4)
    leave = [threading.Event() for _ in order]

    def work(i: int) -> None:
        with changed(thing):
            entered.wait(WAIT)
            assert leave[i].wait(WAIT)

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(work, i) for i in range(3)]
        entered.wait(WAIT)
        for i in order:
            assert thing.value == 1
            leave[i].set()
            futures[i].result(WAIT)
    assert (thing.value, thing.changes) == (0, 1)
    with changed(thing):
        assert thing.value == 1
    assert (thing.value, thing.changes) == (0, 2)


def test_errors_inside_put_the_value_back_when_the_last_has_left():
    thing = Thing()
    with changed(thing):
        with pytest.raises(ZeroDivisionError), changed(thing):
            raise ZeroDivisionError
        assert thing.value == 1
    with pytest.raises(ZeroDivisionError), changed(thing):
        raise ZeroDivisionError
    assert thing.value == 0


def test_whoever_comes_after_a_failed_change_makes_it():
    failures = iter([True])

    @shared
    @contextmanager
    def fails_once(thing: Thing) -> Iterator[None]:
        if next(failures, False):
            raise ZeroDivisionError
        with changed(thing):
            yield

    thing = Thing()
    with pytest.raises(ZeroDivisionError), fails_once(thing):
        pass
    with fails_once(thing):
        assert thing.value == 1
    assert thing.value == 0


def test_whoever_comes_while_the_change_is_made_waits_for_it():
    thing, both, entered = Thing(), threading.Barrier(2), []
    thing.is_free.clear()

    def work() -> None:
        with changed(thing):
            entered.append(thing.value)
            both.wait(WAIT)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work) for _ in range(2)]
        threading.Event().wait(0.1)
        assert entered == []
        thing.is_free.set()
        for future in futures:
            future.result(WAIT)
    assert entered == [1, 1]
    assert (thing.value, thing.changes) == (0, 1)


def test_each_thread_has_the_attention_implementation_that_it_switched_to():
    """Nested, and overlapping with other threads that want another one."""
    model, both = small_llama(), threading.Barrier(2)

    def work(name: str, other: str) -> list[str]:
        seen = []
        with attention_implementation(model, name):
            both.wait(WAIT)
            seen.append(model.config._attn_implementation)
            with attention_implementation(model, other):
                both.wait(WAIT)
                seen.append(model.config._attn_implementation)
            both.wait(WAIT)
            seen.append(model.config._attn_implementation)
        seen.append(model.config._attn_implementation)
        return seen

    own = type(model.config)._attn_implementation
    with ThreadPoolExecutor(2) as pool:
        eager, flex = pool.submit(work, "eager", "flex_attention"), pool.submit(work, "flex_attention", "eager")
        assert eager.result(WAIT) == ["eager", "flex_attention", "eager", "sdpa"]
        assert flex.result(WAIT) == ["flex_attention", "eager", "flex_attention", "sdpa"]
    assert type(model.config)._attn_implementation is own


def chosen(logits: Tensor, token_ids: Tensor) -> Tensor:
    return logits.gather(-1, token_ids[..., None])[..., 0]


def overlapping(explain: Callable[[GradELLMConfig], Any], between: Callable[[], None] = lambda: None) -> list[Any]:
    """What two threads explain: the first starts, the second starts, `between` runs, the first ends, the second goes on."""
    first_started, second_started, go_on, first_ended = (threading.Event() for _ in range(4))

    def explain_in_turn(started: threading.Event, may_go_on: threading.Event, ended: threading.Event) -> Any:
        def target(logits: Tensor, token_ids: Tensor) -> Tensor:
            started.set()
            assert may_go_on.wait(WAIT)
            return chosen(logits, token_ids)

        try:
            return explain(GradELLMConfig(target=target, step_chunk_size=2, output_layer_attributions=True))
        finally:
            started.set()  # also if it failed
            ended.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(explain_in_turn, first_started, go_on, first_ended)
        assert first_started.wait(WAIT)
        second = pool.submit(explain_in_turn, second_started, first_ended, threading.Event())
        assert second_started.wait(WAIT)
        try:
            between()
        finally:
            go_on.set()
        return [first.result(WAIT), second.result(WAIT)]


def assert_explained(outputs: list[Any], explain: Callable[[GradELLMConfig], Any], tolerance: float = 1e-4) -> None:
    expected = explain(GradELLMConfig(target=chosen, step_chunk_size=2, output_layer_attributions=True))
    for out in outputs:
        assert_same_heatmaps(out.layer_attributions, expected.layer_attributions, tolerance)


def test_two_threads_explain_a_model_with_its_users_attention_while_a_third_generates_with_it():
    calls = []

    def counted(module: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(threading.get_ident())
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("of_a_user", counted)
    AttentionMaskInterface.register("of_a_user", sdpa_mask)
    try:
        model, ids = small_llama(attention="of_a_user"), random_ids(2, 12)

        def explain(config: GradELLMConfig) -> Any:
            return explain_sequences(model, ids, 5, explain_config=config)

        assert_explained([], explain)  # looks at the model, and compares its attention with sdpa

        def generate() -> None:
            calls.clear()
            model.generate(ids, max_new_tokens=2)
            assert calls == [threading.get_ident()] * 10

        calls.clear()
        outputs = overlapping(explain, generate)
        assert set(calls) <= {threading.get_ident()}
        assert model.config._attn_implementation == "of_a_user"
    finally:
        AttentionInterface._global_mapping.pop("of_a_user")
        AttentionMaskInterface._global_mapping.pop("of_a_user")
    plain = small_llama()
    assert_explained(outputs, lambda config: explain_sequences(plain, ids, 5, explain_config=config))


@pytest.mark.filterwarnings("ignore:flex_attention called without", "ignore::DeprecationWarning")
def test_two_threads_explain_a_model_with_flex_attention():
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    model, plain = (small_llama(attention=name, **sizes) for name in ("flex_attention", "sdpa"))
    ids = random_ids(2, 12)
    with torch.compiler.set_stance("force_eager"):  # its kernel would be compiled
        outputs = overlapping(lambda config: explain_sequences(model, ids, 5, explain_config=config))
    assert model.config._attn_implementation == "flex_attention"
    assert_explained(outputs, lambda config: explain_sequences(plain, ids, 5, explain_config=config))


def test_two_threads_explain_an_offloaded_model():
    model, ids = accelerate.cpu_offload(small_llama(), execution_device=torch.device("cpu")), random_ids(2, 12)
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    explain_sequences(model, ids, 5)
    seen = []

    def flags() -> dict[str, bool]:
        return {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    def explain(config: GradELLMConfig) -> Any:
        out = explain_sequences(model, ids, 5, explain_config=config)
        seen.append(flags())
        return out

    outputs = overlapping(explain)
    first, second = seen
    assert not any(first.values())  # the second thread is still inside
    assert second == flags() == before
    plain = small_llama()
    assert_explained(outputs, lambda config: explain_sequences(plain, ids, 5, explain_config=config))


@pytest.fixture
def quantized(tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    small_llama(vocab_size=96, initializer_range=0.1, num_hidden_layers=2, **sizes).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.float32, device_map="cpu"
    ).eval()
    model.generate(**padded_prompts(), max_new_tokens=2)  # packs the weights
    packed = [module for module in model.modules() if getattr(getattr(module, "weight", None), "quant_state", None)]
    if not getattr(packed[0].weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this processor has no kernel for packed weights")
    assert len(packed) == 14
    return model


def test_two_threads_explain_a_quantised_model_while_a_third_generates_with_it(quantized, monkeypatch):
    import bitsandbytes

    model, ids, own, unpacked = quantized, random_ids(2, 12) % 96, bitsandbytes.matmul_4bit, []
    unpack = quantization._unpacked
    with torch.no_grad():
        before = model(ids).logits

    def explain(config: GradELLMConfig) -> Any:
        return explain_sequences(model, ids, 5, explain_config=config)

    def generate() -> None:
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)

    assert_explained([], explain)  # looks at the model
    monkeypatch.setattr(quantization, "_unpacked", lambda *args: unpacked.append(args) or unpack(*args))
    outputs = overlapping(explain, generate)
    assert len(unpacked) == 14  # once each
    assert bitsandbytes.matmul_4bit is own
    assert all(module.support_avx512bf16_for_cpu for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu"))
    generate()
    assert_explained(outputs, explain)


def test_compiled_models_are_compiled_again_when_the_last_explanation_is_over():
    from torch._dynamo import eval_frame

    models = [torch.compile(small_llama(), backend="eager") for _ in range(2)]
    first, second = ExitStack(), ExitStack()
    assert eval_frame._stance.stance == "default"
    first.enter_context(explainable(models[0]))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(second.enter_context, explainable(models[1])).result(WAIT)
        first.close()
        assert eval_frame._stance.stance == "force_eager"
        pool.submit(second.close).result(WAIT)
    assert eval_frame._stance.stance == "default"


def test_two_threads_explain_models_whose_caches_are_recurrent():
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"] * 2}
    model, ids = Lfm2ForCausalLM(Lfm2Config(**sizes, **heads)).eval(), random_ids(1, 9)
    config, start = GradELLMConfig(engine="stepwise", output_layer_attributions=True), threading.Barrier(2)
    expected = explain_sequences(model, ids, 5, explain_config=config)

    def explain() -> list[Any]:
        start.wait(WAIT)
        return [explain_sequences(model, ids, 5, explain_config=config) for _ in range(5)]

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(explain) for _ in range(2)]:
            for out in future.result(WAIT):
                assert_same_heatmaps(out.layer_attributions, expected.layer_attributions)


def test_the_rules_that_captum_lacks_stay_until_the_last_thread_has_used_them():
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    model, before = small_llama(), dict(SUPPORTED_NON_LINEAR)
    first, second = ExitStack(), ExitStack()
    first.enter_context(_rescaled_activations(model))
    second.enter_context(_rescaled_activations(model))
    added = set(SUPPORTED_NON_LINEAR) - set(before)
    assert type(model.model.layers[0].mlp.act_fn) in added
    first.close()
    assert set(SUPPORTED_NON_LINEAR) - set(before) == added
    second.close()
    assert before == SUPPORTED_NON_LINEAR
