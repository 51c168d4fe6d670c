"""GIM and FlashTrace by their packages, where these are installed; and what is said where they are not."""

import importlib.util
import sys

import pytest
import torch

from gradellm_hf import GradELLMError
from gradellm_hf.architecture.plain_attention import attention_implementation
from gradellm_hf.methods import flash_trace, gim, input_x_gradient
from gradellm_hf.methods.flashtrace_adapter import _core, traced_routes
from tests.support.small_llama import padded_prompts, random_ids, small_llama
from tests.support.tiny_models import tiny_model
from tests.support.tiny_tokenizers import byte_level_bpe


def needs(package):
    if importlib.util.find_spec(package) is None:  # importing flashtrace needs more than its computing module does
        pytest.skip(f"{package} is not installed")


@pytest.fixture(params=["gim", "flash_trace"])
def method(request):
    needs({"gim": "gim", "flash_trace": "flashtrace"}[request.param])
    return gim(byte_level_bpe()) if request.param == "gim" else flash_trace()


def test_padding_and_the_rest_of_the_batch_change_nothing_and_the_model_is_left_as_it_was(method):
    model = small_llama(vocab_size=400)  # the tokenizer has as many
    prompts = padded_prompts((7, 4))
    ids = torch.cat([prompts["input_ids"], random_ids(2, 3, 8)], dim=1)
    mask = torch.cat([prompts["attention_mask"], torch.tensor([[1, 1, 1], [1, 1, 0]])], dim=1)
    with attention_implementation(model, "eager"):  # Transformers leaves hooks of its own when first asked for attentions
        model(ids, output_attentions=True)
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    scores = method(model, ids, 7, mask)
    alone = method(model, ids[1:, 3:9], 4)
    torch.testing.assert_close(scores[1:, :2, 3:9], alone, rtol=2e-3, atol=2e-3 * alone.abs().max().item())
    assert not scores[1, 2].any()
    assert not scores[1, :, :3].any()
    assert scores[0, 0, :7].any()
    assert not scores[:, 0, 7:].any()
    assert model.config._attn_implementation == "sdpa"
    assert all(p.grad is None for p in model.parameters())
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == before
    assert torch.nn.functional.softmax.__module__ == "torch.nn.functional"


def test_gim_is_what_the_package_explains():
    package = pytest.importorskip("gim")
    model, ids, tokenizer = small_llama(vocab_size=400), random_ids(1, 8), byte_level_bpe()
    found = gim(tokenizer)(model, ids, 6)
    for step in range(2):
        options = {"target_token_id": int(ids[0, 6 + step]), "tokenizer": tokenizer}
        expected = package.explain(model, ids[:, : 6 + step], **options)
        torch.testing.assert_close(found[0, step, : 6 + step], expected, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found, input_x_gradient(model, ids, 6), rtol=0.05)


def test_the_routes_are_those_of_the_package_for_each_token():
    needs("flashtrace")
    model, ids = tiny_model("llama", dtype=torch.float32, attn_implementation="eager"), torch.arange(9)[None] + 3
    found = flash_trace()(model, ids, 6)
    assert (found >= 0).all()
    core = _core()
    metadata = core.extract_model_metadata(model)
    cache, hooks = core.attach_hooks(metadata.layers, torch.float32)
    attentions = model(input_ids=ids, output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    sizes = (metadata.n_layers, metadata.n_heads_q, metadata.n_kv_heads, metadata.head_dim, metadata.group_size)
    parameters = core.IFRParameters(*sizes, metadata.d_model, 9, torch.float32, 4, 4)
    pack = core.build_weight_pack(metadata, torch.float32)
    for step in range(3):
        whole = core.compute_ifr_for_position(6 + step, cache, attentions, pack, parameters).token_importance_total
        torch.testing.assert_close(found[0, step, : 6 + step], whole[: 6 + step], rtol=1e-4, atol=1e-6)


def test_a_hop_adds_what_the_text_before_the_result_rests_on_in_the_prompt():
    needs("flashtrace")
    model, ids = tiny_model("llama", dtype=torch.float32), torch.arange(9)[None] + 3
    none, one, two = traced_routes(model, ids, 5, 7, 2)
    for hop in (none, one, two):
        assert not hop[5:].any()
    assert (one[:5] > none[:5]).all()
    assert (two - one).sum() < (one - none).sum()


def test_a_model_that_flashtrace_does_not_know_is_named():
    needs("flashtrace")
    with pytest.raises(GradELLMError, match="flashtrace failed on `gpt2`"):
        flash_trace()(tiny_model("gpt2", dtype=torch.float32), torch.arange(9)[None] + 3, 6)


def test_without_its_package_the_error_has_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gim", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _core.cache_clear()
    with pytest.raises(GradELLMError, match="pip install --no-deps gim-explain"):
        gim(byte_level_bpe())(small_llama(), random_ids(1, 8), 6)
    with pytest.raises(GradELLMError, match="pip install --no-deps flashtrace"):
        flash_trace()(small_llama(), random_ids(1, 8), 6)
