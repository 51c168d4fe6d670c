"""Models whose code is not in Transformers: exact, or refused with a word on what to do."""

import threading

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gradellm_hf import (
    ExplainGenerateOutput,
    GradELLMConfig,
    GradELLMWarning,
    UnsupportedArchitectureError,
    explain_generate,
    explain_sequences,
    verify,
)
from gradellm_hf.architecture.interception import attention_handler
from model_patches import ArchitectureAdapter, register_adapter
from model_patches import registry as adapter_registry
from model_patches.fused import side_by_side
from tests.support.architectures.lifted_precision import lifted_precision
from tests.support.architectures.step_reference import reference_heatmaps
from tests.support.remote_code import RemoteForCausalLM, remote_model
from tests.support.versions import CACHE, since

CONFIG = GradELLMConfig(positive_only=False, output_layer_attributions=True)
WITHOUT_INTERFACE = "does not look up its attention function in Transformers' AttentionInterface"
PROMPT, STEPS = 9, 4
has_get_interface = since("5.1", "AttentionInterface.get_interface")
LOOKED_UP = pytest.param("get_interface", marks=has_get_interface)


@pytest.fixture(autouse=True)
def adapters_by_hand(monkeypatch):
    monkeypatch.setattr(adapter_registry, "_by_hand", dict(adapter_registry._by_hand))


def prompts() -> Tensor:
    return torch.randint(1, 43, (2, PROMPT), generator=torch.Generator().manual_seed(1))


def explained(model: RemoteForCausalLM, token_ids: Tensor, attention_mask: Tensor | None = None) -> ExplainGenerateOutput:
    with lifted_precision():
        return explain_generate(
            model,
            token_ids,
            attention_mask=attention_mask,
            max_new_tokens=STEPS,
            do_sample=False,
            pad_token_id=0,
            explain_config=CONFIG,
        )


def assert_exact(out: ExplainGenerateOutput, reference: RemoteForCausalLM) -> None:
    expected = reference_heatmaps(reference, out.sequences, PROMPT)
    assert out.layer_attributions.shape == expected.shape == (2, 3, STEPS, PROMPT + STEPS)
    torch.testing.assert_close(out.layer_attributions, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("error::gradellm_hf.GradELLMWarning")
@pytest.mark.parametrize(
    ("attention", "implementation"),
    [
        pytest.param("get_interface", "sdpa", marks=has_get_interface),
        pytest.param("get_interface", "eager", marks=has_get_interface),
        ("index", "sdpa"),
        ("index", "eager"),
    ],
)
def test_attention_looked_up_in_the_interface_is_replayed_exactly(attention, implementation):
    model, token_ids = remote_model(attention, implementation), prompts()
    out = explained(model, token_ids)
    assert torch.equal(out.sequences, model.generate(token_ids, max_new_tokens=STEPS, do_sample=False, pad_token_id=0))
    assert_exact(out, remote_model(attention, "eager"))
    assert verify(model) < 1e-9


def test_look_ups_are_handled_however_often_they_were_before():
    """CPython 3.13 remembers what `x[name]` calls, and forgets to forget it once a class has changed a thousand times."""

    def look_up():
        return ALL_ATTENTION_FUNCTIONS["sdpa"]

    model = remote_model("index", "sdpa")
    for _ in range(600):
        for _ in range(20):  # so often that the interpreter remembers
            assert look_up() is sdpa_attention_forward
        with attention_handler(model, lambda own, *args, **kwargs: None):
            for _ in range(20):
                assert look_up() is not sdpa_attention_forward


@pytest.mark.parametrize(("attention", "implementation"), [("own", "sdpa"), ("own", "eager")])
def test_attention_of_its_own_is_explained_stepwise_with_a_warning(attention, implementation):
    model, token_ids = remote_model(attention, implementation), prompts()
    with pytest.warns(GradELLMWarning, match=WITHOUT_INTERFACE):
        out = explained(model, token_ids)
    assert torch.equal(out.sequences, model.generate(token_ids, max_new_tokens=STEPS, do_sample=False, pad_token_id=0))
    assert_exact(out, remote_model(attention, "eager"))


@pytest.mark.filterwarnings("ignore::gradellm_hf.GradELLMWarning")
@pytest.mark.parametrize("attention", [LOOKED_UP, "index", "own"])
def test_a_padded_row_is_explained_as_it_is_alone(attention):
    model, token_ids = remote_model(attention), prompts()
    mask = torch.ones_like(token_ids)
    mask[1, :4] = 0
    out, alone = explained(model, token_ids, mask), explained(model, token_ids[1:, 4:])
    assert torch.equal(out.sequences[1, 4:], alone.sequences[0])
    torch.testing.assert_close(out.layer_attributions[1, :, :, 4:], alone.layer_attributions[0], rtol=1e-9, atol=1e-9)
    assert not out.layer_attributions[1, :, :, :4].any()


@pytest.mark.filterwarnings("ignore::gradellm_hf.GradELLMWarning")
@pytest.mark.parametrize("attention", [LOOKED_UP, "index", "own"])
def test_text_that_is_given_is_explained_by_a_model_that_counts_cache_positions(attention):
    model = remote_model(attention)
    out = explained(model, prompts())
    with lifted_precision():
        given = explain_sequences(model, out.sequences, PROMPT, explain_config=CONFIG)
    torch.testing.assert_close(given.layer_attributions, out.layer_attributions, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("attention", "reason"), [("index", "it keeps no cache of keys and values"), ("own", WITHOUT_INTERFACE)]
)
def test_a_model_without_a_cache_reads_the_whole_text_at_every_step(attention, reason):
    model, token_ids = remote_model(attention, keeps_cache=False), prompts()
    parts = {"decoder_layers": "blocks", "attention": "attention", "output_projection": "out_proj"}
    register_adapter(ArchitectureAdapter(("remote",), **parts, fused="qkv", split_fused=side_by_side))
    with lifted_precision():
        sequences = model.generate(token_ids, max_new_tokens=STEPS, do_sample=False, pad_token_id=0, use_cache=False)
        with pytest.warns(GradELLMWarning, match=reason):
            out = explain_sequences(model, sequences, PROMPT, explain_config=CONFIG)
    assert_exact(out, remote_model("index", "eager"))


def test_a_model_that_takes_cache_positions_is_always_told_them():
    """Not every one finds them out by itself."""
    model, calls = remote_model("index"), []
    model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    explain_sequences(model, prompts(), PROMPT - 2, explain_config=CONFIG)
    with_cache = [call["cache_position"].tolist() for call in calls if call.get(CACHE) is not None]
    assert [PROMPT - 3, PROMPT - 2] in with_cache  # of the two steps together


@pytest.mark.filterwarnings("ignore::gradellm_hf.GradELLMWarning")
def test_head_outputs_that_are_not_the_weights_times_the_values_are_refused():
    with pytest.raises(UnsupportedArchitectureError, match="is not the attention weights times the values"):
        explained(remote_model("own", gate=0.5), prompts())


@pytest.mark.filterwarnings("ignore::gradellm_hf.GradELLMWarning")
def test_an_output_projection_of_another_name_is_refused_until_an_adapter_names_it():
    model = remote_model("own", output_projection="mix")
    with pytest.raises(UnsupportedArchitectureError, match="Register an ArchitectureAdapter"):
        explained(model, prompts())
    register_adapter(
        ArchitectureAdapter(
            model_types=("remote",),
            decoder_layers="blocks",
            attention="attention",
            output_projection="mix",
            query=None,
            key=None,
            value=None,
        )
    )
    assert_exact(explained(model, prompts()), remote_model("own", output_projection="mix"))


@pytest.mark.parametrize("lookup", [LOOKED_UP, "index"])
def test_a_lookup_elsewhere_finds_the_function_itself(lookup):
    """In another thread, while an explanation runs; and in this one afterwards."""

    def found() -> object:
        if lookup == "index":
            return ALL_ATTENTION_FUNCTIONS["sdpa"]
        return ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)

    before, elsewhere = dict(vars(AttentionInterface)), []
    with attention_handler(nn.Module(), lambda function, *args: (function, args)):
        function, args = found()("module")
        thread = threading.Thread(target=lambda: elsewhere.append(found()))
        thread.start()
        thread.join()
    assert args == ("module",)
    assert function.function is sdpa_attention_forward  # which is called without being handled once more
    assert elsewhere == [sdpa_attention_forward]
    assert found() is sdpa_attention_forward
    assert dict(vars(AttentionInterface)) == before
