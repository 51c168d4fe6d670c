"""What differs between the versions of Transformers, with the one that is installed."""

import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gradellm_hf import (
    GradELLMConfig,
    UnsupportedArchitectureError,
    UnsupportedVersionError,
    explain_generate,
    explain_sequences,
    explain_stream,
    verify,
)
from gradellm_hf.architecture import compat
from gradellm_hf.architecture.compat import (
    CACHE_NAMES,
    OLDEST_VERSION,
    cache_argument,
    cache_of,
    heeded_keywords,
    num_keys,
)
from gradellm_hf.architecture.interception import attention_handler
from gradellm_hf.architecture.reading import forward_parameters
from tests.support.small_llama import assert_same_heatmaps, generate_both, random_ids, small_llama
from tests.support.tiny_models import tiny_model
from tests.support.versions import CACHE


@pytest.mark.parametrize("version", ["4.57.6", "4.9.0.dev0"])
@pytest.mark.parametrize(
    "call",
    [
        lambda model, ids: explain_generate(model, ids, max_new_tokens=2),
        lambda model, ids: explain_sequences(model, ids, 4),
        lambda model, ids: next(iter(explain_stream(model, ids, max_new_tokens=2))),
        lambda model, ids: verify(model),
    ],
    ids=["explain_generate", "explain_sequences", "explain_stream", "verify"],
)
def test_a_version_that_is_too_old_says_so_at_the_first_call(monkeypatch, version, call):
    monkeypatch.setattr(compat.transformers, "__version__", version)
    with pytest.raises(UnsupportedVersionError, match=rf"Transformers {version} is installed, .*{OLDEST_VERSION} or newer"):
        call(small_llama(), random_ids(1, 6))


@pytest.mark.parametrize("version", [OLDEST_VERSION, "5.31.0.dev0", "6.0.0"])
def test_other_versions_are_taken(monkeypatch, version):
    monkeypatch.setattr(compat.transformers, "__version__", version)
    assert explain_sequences(small_llama(), random_ids(1, 6), 4).attributions.shape == (1, 2, 6)


class CacheAmongKeywords(LlamaForCausalLM):
    """Names neither its cache nor its mask."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().forward(input_ids=input_ids, position_ids=position_ids, **kwargs)


def test_an_argument_that_may_get_lost_among_keywords_is_refused():
    model = CacheAmongKeywords(small_llama().config).eval()
    with pytest.raises(UnsupportedArchitectureError, match=rf"\['{CACHE_NAMES[0]}'\], which its `forward` does not name"):
        explain_sequences(model, random_ids(1, 9), 6)
    mask = torch.ones(2, 9).long()
    mask[0, :2] = 0
    with pytest.raises(UnsupportedArchitectureError, match=r"'attention_mask'.*, which its `forward` does not name"):
        explain_sequences(model, random_ids(2, 9), 6, mask)


def test_the_cache_goes_by_the_name_in_the_signature():
    assert cache_argument(forward_parameters(small_llama())) == CACHE
    for name in CACHE_NAMES:
        assert cache_argument(frozenset({"input_ids", name})) == name


def test_the_cache_is_found_in_arguments_and_outputs():
    model, ids = small_llama(), random_ids(1, 4)
    with torch.no_grad():
        assert isinstance(cache_of(model(ids, use_cache=True)), DynamicCache)
        assert cache_of(model(ids, use_cache=False)) is None
    for name in CACHE_NAMES:
        assert cache_of({"input_ids": ids, name: "the cache"}) == "the cache"


def test_the_returned_cache_has_the_name_that_generate_gives_it():
    expected, out = generate_both(small_llama(), inputs=random_ids(1, 5), max_new_tokens=3, return_dict_in_generate=True)
    assert set(expected) <= set(out)
    assert out.cache is out[CACHE]
    assert isinstance(out.cache, DynamicCache)
    assert getattr(out, CACHE) is out.cache


@pytest.mark.parametrize("kind", ["dynamic", "windows", "static"])
def test_the_number_of_keys_is_known_before_the_call(kind):
    model = tiny_model("qwen2_windowed" if kind == "windows" else "llama", dtype=torch.float32)
    cache = StaticCache(config=model.config, max_cache_len=24) if kind == "static" else DynamicCache(config=model.config)
    ids, seen = random_ids(1, 12) % model.config.vocab_size, []

    def attend(function: Any, module: nn.Module, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(key.shape[2])
        return function(module, query, key, *args, **kwargs)

    with torch.no_grad():
        model(ids[:, :7], **{CACHE: cache})
        expected = [num_keys(layer, 3) for layer in cache.layers]
        with attention_handler(model, attend):
            model(ids[:, 7:10], **{CACHE: cache})
    assert seen == expected


def test_only_sdpa_passes_over_soft_capping():
    keywords = {"softcap": 30.0, "sliding_window": 4}
    assert heeded_keywords(sdpa_attention_forward, keywords) == {"sliding_window": 4}
    assert heeded_keywords(small_llama().forward, keywords) == keywords


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_eager_attention_is_seen_in_this_thread_only_and_put_back(engine):
    model, ids = small_llama(attention="eager"), random_ids(1, 9)
    namespace = vars(sys.modules[type(model).__module__])
    own, elsewhere = namespace["eager_attention_forward"], []
    with torch.no_grad():
        expected = model(ids).logits

    def look(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            thread = threading.Thread(target=lambda: elsewhere.append(model(ids).logits))
            thread.start()
            thread.join()
        return logits.gather(-1, token_ids[..., None])[..., 0]

    config = GradELLMConfig(engine=engine, target=look)
    out = explain_sequences(model, ids, 6, explain_config=config)
    assert elsewhere
    assert all(torch.equal(logits, expected) for logits in elsewhere)
    assert namespace["eager_attention_forward"] is own
    assert_same_heatmaps(out.attributions, explain_sequences(small_llama(), ids, 6).attributions)
