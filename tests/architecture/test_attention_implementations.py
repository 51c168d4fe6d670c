"""Models that run with another attention implementation than sdpa and eager: generated with it, explained without it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gradellm_hf import (
    ExplainGenerateOutput,
    GradELLMConfig,
    UnsupportedArchitectureError,
    explain_generate,
    verify,
)
from tests.support.tiny_models import float64_islands, random_text, tiny_model
from tests.support.tiny_multimodal import prompt_with_images, tiny_multimodal

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
CONFIG = GradELLMConfig(positive_only=False, output_layer_attributions=True)
FAMILIES = ["llama", "mistral_windowed", "gpt2", "qwen3"]

pytestmark = pytest.mark.filterwarnings("error::gradellm_hf.GradELLMWarning")  # that another engine was needed


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    with float64_islands():
        yield


@contextmanager
def registered(function: Callable, mask: Callable | None = sdpa_mask) -> Iterator[str]:
    """An attention function under a new name, as a user registers one."""
    name = "of_a_user"
    AttentionInterface.register(name, function)
    if mask is not None:
        AttentionMaskInterface.register(name, mask)
    try:
        yield name
    finally:
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name, None)


class Counted:
    """An attention function that knows how often it was called, and with how many queries."""

    def __init__(self, function: Callable):
        self.function, self.queries = function, []

    def __call__(self, module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.queries.append(query.shape[2])
        return self.function(module, query, *args, **kwargs)


def implementations(model: PreTrainedModel) -> list[str]:
    return [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]


def explained(model: PreTrainedModel, **options: Any) -> ExplainGenerateOutput:
    ids, mask = random_text(model, 2, 9, 0, padding=[0, 3])
    return explain_generate(model, ids, attention_mask=mask, explain_config=CONFIG, **{**OPTIONS, **options})


def assert_same(actual: ExplainGenerateOutput, expected: ExplainGenerateOutput, tolerance: float = 1e-9) -> None:
    assert torch.equal(actual.sequences, expected.sequences)
    scale = expected.layer_attributions.abs().max()
    torch.testing.assert_close(actual.layer_attributions / scale, expected.layer_attributions / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_function_of_the_user_generates_and_sdpa_explains(family, engine):
    config = GradELLMConfig(positive_only=False, output_layer_attributions=True, engine=engine)
    expected = explained(tiny_model(family))
    function = Counted(sdpa_attention_forward)
    with registered(function) as name:
        model = tiny_model(family, attn_implementation=name)
        before = implementations(model)
        ids, mask = random_text(model, 2, 9, 0, padding=[0, 3])
        model.generate(ids, attention_mask=mask, **OPTIONS)
        generation = list(function.queries)
        explain_generate(model, ids, attention_mask=mask, explain_config=config, **OPTIONS)  # and looks at the model once
        function.queries.clear()
        out = explain_generate(model, ids, attention_mask=mask, explain_config=config, **OPTIONS)
        assert function.queries == generation
        assert set(before) == {name}
        assert implementations(model) == before
        assert verify(model) < 1e-6
    assert_same(out, expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without", "ignore::DeprecationWarning")
def test_flex_attention_generates_and_sdpa_explains():
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    plain, flex = (tiny_model("llama", attn_implementation=name, **sizes) for name in ("sdpa", "flex_attention"))
    with torch.compiler.set_stance("force_eager"):  # its kernel would be compiled
        assert_same(explained(flex), explained(plain))
    assert set(implementations(flex)) == {"flex_attention"}


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss"])
def test_where_sdpa_cannot_express_the_attention_eager_explains(model_type):
    """Soft-capping and sinks."""
    expected = explained(without_sdpa(model_type, "eager"))
    function = Counted(modeling(without_sdpa(model_type, "eager")).eager_attention_forward)
    with registered(function, AttentionMaskInterface._global_mapping["eager"]) as name:
        model = without_sdpa(model_type, name)
        assert_same(explained(model), expected)
        assert function.queries
        assert set(implementations(model)) == {name}
        assert verify(model) < 1e-6


@pytest.mark.filterwarnings("ignore:flex_attention called without", "ignore::DeprecationWarning")
def test_flex_attention_with_soft_capping_is_explained_by_eager():
    plain, flex = (without_sdpa("gemma2", name) for name in ("eager", "flex_attention"))
    with torch.compiler.set_stance("force_eager"):
        assert_same(explained(flex), explained(plain))


def without_sdpa(model_type: str, attn_implementation: str) -> PreTrainedModel:
    config = AutoConfig.for_model(
        model_type,
        vocab_size=43,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        num_local_experts=3,
        num_experts_per_tok=2,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
        experts_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape) + (parameter.ndim == 1))
    return model.double().eval()


def modeling(model: PreTrainedModel) -> Any:
    return sys.modules[type(model).__module__]


def sharper(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
    return sdpa_attention_forward(module, 1.5 * query, *args, **kwargs)


def test_a_function_that_computes_something_else_is_refused_before_anything_is_generated():
    function = Counted(sharper)
    with registered(function) as name:
        model = tiny_model("llama", attn_implementation=name)
        for _ in range(2):
            with pytest.raises(
                UnsupportedArchitectureError, match=r"`of_a_user` .* changes its logits by .*: it computes something"
            ):
                explained(model)
        assert max(function.queries) == 64  # the text that it was tried with
        assert set(implementations(model)) == {name}


def test_a_function_without_masks_is_explained_where_no_row_is_padded():
    """Transformers has no mask for it, so it attends to padding."""
    with registered(sdpa_attention_forward, mask=None) as name:
        model = tiny_model("llama", attn_implementation=name)
        ids, mask = random_text(model, 2, 9, 0, padding=[0, 3])
        options = {"explain_config": CONFIG, **OPTIONS}
        assert_same(explain_generate(model, ids, **options), explain_generate(tiny_model("llama"), ids, **options))
        with pytest.raises(UnsupportedArchitectureError, match="computes something else") as error:
            explain_generate(model, ids, attention_mask=mask, **options)
        assert error.value.generated.sequences.shape == (2, 13)


def test_a_function_that_calls_another_one_of_the_mapping_is_explained():
    def forwards(module: Any, *args: Any, **kwargs: Any) -> Any:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    expected = explained(tiny_model("llama"))
    with registered(forwards) as name:
        assert_same(explained(tiny_model("llama", attn_implementation=name)), expected)


def test_a_function_of_the_user_in_the_text_part_only_is_explained():
    """Where images are read, each part has an implementation of its own."""
    prompt = prompt_with_images("llava", [[2, 5], [3, 3]])
    expected = explain_generate(tiny_multimodal("llava"), **prompt.inputs, explain_config=CONFIG, **OPTIONS)
    function = Counted(sdpa_attention_forward)
    with registered(function) as name:
        model = tiny_multimodal("llava", {"": "sdpa", "text_config": name, "vision_config": "eager"})
        before = implementations(model)
        out = explain_generate(model, **prompt.inputs, explain_config=CONFIG, **OPTIONS)
        assert function.queries
        assert {name, "eager", "sdpa"} == set(before)
        assert implementations(model) == before
    assert_same(out, expected)


def test_changing_the_implementation_between_two_explanations_is_noticed():
    expected = explained(tiny_model("llama"))
    model = tiny_model("llama")
    assert_same(explained(model), expected)
    with registered(sharper) as name:
        model.set_attn_implementation(name)
        with pytest.raises(UnsupportedArchitectureError, match="computes something else"):
            explained(model)
    model.set_attn_implementation("eager")
    assert_same(explained(model), expected)
