"""Every refusal says what happened, what was expected and what to do."""

import functools
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    LogitsProcessor,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    T5Config,
)

from gradellm_hf import (
    GradELLMConfig,
    GradELLMError,
    HeadWeights,
    InvalidInputError,
    UnsupportedArchitectureError,
    explain_generate,
    explain_sequences,
    explain_stream,
    verify,
)
from gradellm_hf.methods import get_method, inseq_method, method_names
from gradellm_hf.metrics import deletion, insertion, pi_soft_nc, pi_soft_ns, rank_correlation, soft_nc, soft_ns
from tests.support.small_llama import PAD, VOCABULARY, assert_same_heatmaps, padded_prompts, random_ids, small_llama

WEIGHTS = HeadWeights(torch.ones(5, 6), "magnitude", "llama")


@pytest.fixture(scope="module")
def llama():
    return small_llama()


class CountCalls(LogitsProcessor):
    calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return scores


def t5() -> Any:
    config = T5Config(vocab_size=97, d_model=24, d_kv=6, d_ff=30, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return AutoModelForSeq2SeqLM.from_config(config).eval()


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=24, state_size=5, num_hidden_layers=2)).eval()


def rwkv() -> Any:
    return RwkvForCausalLM(RwkvConfig(vocab_size=97, hidden_size=24, num_hidden_layers=2, context_length=32)).eval()


ENTRANCES = {
    "explain_generate": lambda model: explain_generate(model, random_ids(1, 5), max_new_tokens=2),
    "explain_sequences": lambda model: explain_sequences(model, random_ids(1, 5), 3),
    "verify": verify,
}


@pytest.fixture(params=ENTRANCES.values(), ids=ENTRANCES.keys())
def entrance(request):
    return request.param


def test_both_errors_are_value_errors_of_this_package():
    for error in (InvalidInputError, UnsupportedArchitectureError):
        assert issubclass(error, ValueError)
        assert issubclass(error, GradELLMError)


def test_an_encoder_decoder_model(entrance):
    with pytest.raises(UnsupportedArchitectureError, match=r"`t5` is an encoder-decoder model.* Use a decoder-only model"):
        entrance(t5())


@pytest.mark.parametrize("build", [mamba, rwkv])
def test_a_model_without_attention(entrance, build):
    with pytest.raises(UnsupportedArchitectureError, match=r"has no softmax attention.* Use a model with attention layers"):
        entrance(build())


def test_a_model_in_training_mode(entrance):
    with pytest.raises(InvalidInputError, match=r"in training mode.* Call `model\.eval\(\)` first"):
        entrance(small_llama().train())


@pytest.mark.parametrize("thing", ["our/llama", nn.Linear(2, 3), None, {"model": 1}], ids=["name", "module", "None", "dict"])
def test_something_that_is_not_a_model(entrance, thing):
    with pytest.raises(InvalidInputError, match=rf"Expected a Transformers model with `generate`.* got {type(thing).__name__}"):
        entrance(thing)


def test_weights_created_in_inference_mode(entrance):
    with torch.inference_mode():
        model = small_llama()
    with pytest.raises(InvalidInputError, match=r"created inside `torch.inference_mode.* Load the model outside of it"):
        entrance(model)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[1, 2]]}, r"got dict\. Unpack what a tokenizer returns: `explain_generate\(model, \*\*inputs\)`\.$"),
        ([[1, 2]], r"got list\.$"),
        (random_ids(1, 5)[0], r"got torch.int64 \[5\]\.$"),
    ],
    ids=["mapping", "list", "one dimension"],
)
def test_a_prompt_that_is_not_a_batch_of_token_ids(llama, inputs, message):
    with pytest.raises(
        InvalidInputError,
        match=rf"Expected the prompt as token ids of shape \[batch, P\] \(torch.int64 or torch.int32\), {message}",
    ):
        explain_generate(llama, inputs, max_new_tokens=2)


def test_padding_on_the_right_is_refused_before_anything_is_generated(llama):
    ids, mask = random_ids(2, 6), torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    counter = CountCalls()
    with pytest.raises(InvalidInputError, match=r'row\(s\) \[1\] ends in padding.*`tokenizer.padding_side = "left"`'):
        explain_generate(llama, ids, attention_mask=mask, max_new_tokens=3, logits_processor=[counter])
    with pytest.raises(InvalidInputError, match=r"row\(s\) \[1\] ends in padding"):  # the mask that `generate` infers
        explain_generate(llama, ids.masked_fill(mask == 0, PAD), max_new_tokens=3, logits_processor=[counter])
    assert counter.calls == 0
    for given in (mask, torch.cat([mask, torch.ones(2, 3)], dim=1)):
        with pytest.raises(InvalidInputError, match=r"row\(s\) \[1\] ends in padding"):
            explain_sequences(llama, torch.cat([ids, random_ids(2, 3)], dim=1), 6, given)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (6, r"asks for the last 6 layers, but the model has 5.* Use a number from 1 to 5"),
        ([1, 5, 7], r"contains \[5, 7\], but the model has 5.* Use indices from -5 to 4"),
        ([-6], r"contains \[-6\], but the model has 5"),
    ],
)
def test_layers_that_the_model_does_not_have(llama, layers, message):
    counter = CountCalls()
    with pytest.raises(InvalidInputError, match=message):
        explain_generate(
            llama, random_ids(1, 5), max_new_tokens=2, logits_processor=[counter], explain_config=GradELLMConfig(layers=layers)
        )
    assert counter.calls == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "last"}, "`layers` must be .* got 'last'"),
        ({"layers": 0}, "`layers` must be .* at least 1 .* got 0"),
        ({"layers": -2}, "`layers` must be .* got -2"),
        ({"layers": []}, r"`layers` must be .* non-empty .* got \[\]"),
        ({"layers": [1.5]}, r"`layers` must be .* got \[1\.5\]"),
        ({"layers": True}, "`layers` must be .* got True"),
        ({"layers": None}, "`layers` must be .* got None"),
        ({"spatial": "cosine"}, "`spatial` must be 'attention' or 'loosened', got 'cosine'"),
        ({"channel": "queries"}, "`channel` must be 'heads' or 'attention_output', got 'queries'"),
        ({"engine": "fast"}, "`engine` must be 'replay' or 'stepwise', got 'fast'"),
        ({"target": "entropy"}, "`target` must be 'logit' or .* a callable .* got 'entropy'"),
        ({"positive_part": "group"}, "`positive_part` must be 'layer' or 'head', got 'group'"),
        ({"head_weights": 5}, "`head_weights` must be HeadWeights, .* got 5"),
        ({"head_weights": {}}, "`head_weights` has no 'feature'"),
        ({"head_weights": WEIGHTS, "channel": "attention_output"}, '`channel="heads"`'),
        ({"head_weights": WEIGHTS, "spatial": "loosened"}, '`spatial="attention"`'),
        ({"positive_only": 1}, "`positive_only` must be True or False, got 1"),
        ({"output_layer_attributions": "yes"}, "`output_layer_attributions` must be True or False, got 'yes'"),
        ({"step_chunk_size": 0}, "`step_chunk_size` must be None .* at least 1, got 0"),
        ({"step_chunk_size": 2.0}, r"`step_chunk_size` must be None .* got 2\.0"),
        ({"target": "contrast"}, '`target="contrast"` and `contrast_token_ids` belong together'),
        ({"contrast_token_ids": [1]}, '`target="contrast"` and `contrast_token_ids` belong together'),
    ],
    ids=str,
)
def test_options_that_the_configuration_does_not_know(options, message):
    with pytest.raises(InvalidInputError, match=message):
        GradELLMConfig(**options)


def test_a_configuration_from_a_dict_with_unknown_options():
    with pytest.raises(
        InvalidInputError, match=r"Unknown options \['layer'\] of GradELLMConfig; the known ones are .*'layers'"
    ):
        GradELLMConfig.from_dict({"layer": 3})


@pytest.mark.parametrize("config", [{"layers": 1}, "paper"])
def test_a_configuration_that_is_none(llama, config):
    with pytest.raises(InvalidInputError, match=r"`explain_config` must be a GradELLMConfig, got"):
        explain_generate(llama, random_ids(1, 5), max_new_tokens=2, explain_config=config)


@pytest.mark.parametrize(
    ("foils", "message"),
    [
        ([1, 2], r"`contrast_token_ids` .*\[R, N\] = \[2, 3\]"),
        (VOCABULARY, f"`contrast_token_ids` .*{VOCABULARY}"),
    ],
    ids=["shape", "out of the vocabulary"],
)
def test_foils_that_do_not_fit_leave_the_text(llama, foils, message):
    config = GradELLMConfig(target="contrast", contrast_token_ids=foils)
    ids = random_ids(2, 5)
    with pytest.raises(InvalidInputError, match=message) as raised:
        explain_generate(llama, ids, max_new_tokens=3, explain_config=config)
    assert torch.equal(raised.value.generated.sequences, llama.generate(ids, max_new_tokens=3))


TARGETS = {
    "a scalar": (lambda logits, ids: logits.sum(), r"\[R, N\] = \[2, 3\] .* got shape \[\]"),
    "all logits": (lambda logits, ids: logits, r"got shape \[2, 3, 97\]"),
    "a number": (lambda logits, ids: 1.0, "got float"),
    "constants": (lambda logits, ids: torch.zeros(ids.shape), "depends on the logits differentiably"),
    "token ids": (lambda logits, ids: logits.argmax(-1), "depends on the logits differentiably"),
}


@pytest.mark.parametrize(("target", "message"), TARGETS.values(), ids=TARGETS.keys())
def test_a_target_that_returns_something_else(llama, target, message):
    explain_generate(llama, random_ids(2, 5), max_new_tokens=3)
    with pytest.raises(InvalidInputError, match=r"The callable `target` must map") as raised:
        explain_generate(llama, random_ids(2, 5), max_new_tokens=3, explain_config=GradELLMConfig(target=target))
    raised.match(message)
    assert raised.value.generated.sequences.shape == (2, 8)


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_produces_nan(engine, value):
    model, ids, config = small_llama(), random_ids(2, 5), GradELLMConfig(engine=engine)
    weight = model.model.layers[3].mlp.down_proj.weight.data
    good, weight[0, 0] = weight[0, 0].item(), value
    with pytest.raises(
        InvalidInputError, match=r"produced NaN or infinite values in torch.float32.* Check its weights"
    ) as raised:
        explain_generate(model, ids, max_new_tokens=3, explain_config=config)
    assert raised.value.generated.sequences.shape == (2, 8)
    weight[0, 0] = good
    assert_same_heatmaps(  # and the model is not remembered as one that cannot be replayed
        explain_generate(model, ids, max_new_tokens=3, explain_config=config).attributions,
        explain_generate(small_llama(), ids, max_new_tokens=3).attributions,
    )


HEATMAPS = torch.rand(1, 2, 6, generator=torch.Generator().manual_seed(0))


def _verify(model: Any) -> None:
    verify(model)


def _stream(model: Any) -> None:
    list(explain_stream(model, random_ids(1, 5), max_new_tokens=2))


def _method(name: str) -> Any:
    return lambda model: get_method(name)(model, random_ids(1, 6), 4)


def _metric(metric: Any) -> Any:
    return lambda model: metric(model, random_ids(1, 6), 4, HEATMAPS)


RUNNING_THE_MODEL = {
    "verify": _verify,
    "explain_stream": _stream,
    "explain_sequences": lambda model: explain_sequences(model, random_ids(1, 6), 4),
    **{name: _method(name) for name in method_names() if name != "random"},
    "inseq": lambda model: inseq_method("saliency")(model, random_ids(1, 6), 4),
    **{metric.__name__: _metric(metric) for metric in (soft_ns, soft_nc, pi_soft_ns, pi_soft_nc, deletion, insertion)},
    "rank_correlation": _metric(rank_correlation),
}


@pytest.mark.parametrize("name", RUNNING_THE_MODEL)
@pytest.mark.parametrize("where", ["model.embed_tokens", "model.layers.2.mlp.down_proj"])
def test_whatever_runs_a_model_that_produces_nan_says_so(name, where):
    model = small_llama(head_dim=8)  # H * D == E, as the paper's preset needs
    RUNNING_THE_MODEL[name](model)
    model.get_submodule(where).weight.data[:] = float("nan")
    with pytest.raises(InvalidInputError, match=r"produced NaN or infinite values in torch.float32.* Check its weights"):
        RUNNING_THE_MODEL[name](model)


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_a_probability_that_is_nan_counts_although_the_heatmap_is_finite(engine):
    model = small_llama()
    ids = random_ids(1, 6)
    other = next(token for token in range(VOCABULARY) if token not in ids.tolist()[0])
    model.lm_head.weight.data[other] = float("nan")  # a logit that is not explained
    with pytest.raises(InvalidInputError, match="produced NaN"):
        explain_sequences(model, ids, 4, explain_config=GradELLMConfig(engine=engine))


def test_a_token_that_the_model_never_writes_is_no_error():
    model = small_llama()
    ids = random_ids(1, 6)
    other = next(token for token in range(VOCABULARY) if token not in ids.tolist()[0])
    expected = deletion(model, ids, 4, HEATMAPS)

    def suppress(module: nn.Module, args: Any, out: Any) -> None:
        out.logits[..., other] = -torch.inf

    model.register_forward_hook(suppress)
    values = deletion(model, ids, 4, HEATMAPS)
    assert values.isfinite().all()
    assert (values > expected).all()  # its probability is the others'


@pytest.mark.parametrize(
    ("sequences", "got"),
    [
        (random_ids(1, 5)[0], r"got torch.int64 \[5\]"),
        (random_ids(1, 5).float(), r"got torch.float32 \[1, 5\]"),
        ([[1, 2, 3]], "got list"),
        ("Hello", "got str"),
    ],
    ids=["one dimension", "floats", "list", "text"],
)
def test_sequences_that_are_no_token_ids(llama, sequences, got):
    with pytest.raises(InvalidInputError, match=rf"`sequences` must be token ids of shape \[R, S\] \(int64\), {got}"):
        explain_sequences(llama, sequences, 2)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_token_ids_out_of_the_vocabulary(llama, token):
    sequences = random_ids(2, 6)
    sequences[1, 4] = token
    message = f"holds the token id {token}, but the model has {VOCABULARY} tokens, from 0 to {VOCABULARY - 1}"
    with pytest.raises(InvalidInputError, match=f"`sequences` {message}"):
        explain_sequences(llama, sequences, 3)
    counter = CountCalls()
    for explain in (explain_generate, explain_stream):
        with pytest.raises(InvalidInputError, match=f"The prompt {message}"):
            explain(llama, sequences, max_new_tokens=2, logits_processor=[counter])
    assert counter.calls == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_prompts_of_another_type_than_token_ids(llama, dtype):
    for explain in (explain_generate, explain_stream):
        with pytest.raises(InvalidInputError, match=rf"token ids .*\(torch.int64 or torch.int32\), got {dtype} \[2, 6\]"):
            explain(llama, random_ids(2, 6).to(dtype), max_new_tokens=2)


@pytest.mark.parametrize("shape", [(1, 6), (3, 6), (2, 5)])
def test_masks_of_another_shape_than_the_prompt(llama, shape):
    for explain in (explain_generate, explain_stream):
        with pytest.raises(InvalidInputError, match=r"`attention_mask` must have the shape of the prompt, .* \[2, 6\]"):
            explain(llama, random_ids(2, 6), attention_mask=torch.ones(shape), max_new_tokens=2)


@pytest.mark.parametrize("prompt_length", [0, -1, 7, 2.0, "3", None])
def test_prompt_lengths_that_are_none(llama, prompt_length):
    with pytest.raises(InvalidInputError, match=r"`prompt_length` must be an int from 1 to S = 6, got"):
        explain_sequences(llama, random_ids(2, 6), prompt_length)


@pytest.mark.parametrize("shape", [(2, 5), (1, 6), (6,), (2, 1, 6, 6)])
def test_masks_of_another_shape(llama, shape):
    with pytest.raises(
        InvalidInputError, match=r"`attention_mask` must have shape \[R, S\] = \[2, 6\] or \[R, P\] = \[2, 3\], got"
    ):
        explain_sequences(llama, random_ids(2, 6), 3, torch.ones(shape))


def test_a_mask_that_is_no_tensor(llama):
    with pytest.raises(InvalidInputError, match=r"`attention_mask` must .* got list"):
        explain_sequences(llama, random_ids(2, 6), 3, [[1] * 6] * 2)


def test_a_paged_cache(llama):
    with pytest.raises(InvalidInputError, match=r'`cache_implementation="paged"`.* leave it out'):
        explain_generate(llama, random_ids(1, 5), max_new_tokens=2, cache_implementation="paged")


def test_token_healing(llama):
    for options in ({"token_healing": True}, {"generation_config": GenerationConfig(token_healing=True)}):
        with pytest.raises(InvalidInputError, match=r"`token_healing` rewrites the prompt. Heal it first"):
            explain_generate(llama, random_ids(1, 5), max_new_tokens=2, **options)


def test_an_empty_prompt(llama):
    for options in ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, {"inputs_embeds": torch.zeros(1, 0, 48)}):
        with pytest.raises(InvalidInputError, match=r"The prompt is empty\. Give it at least one token"):
            explain_generate(llama, max_new_tokens=2, **options)


@pytest.mark.parametrize("call", [explain_generate, functools.partial(explain_sequences, prompt_length=3)])
def test_the_paper_preset_on_a_model_whose_heads_are_not_as_wide_as_the_model(llama, call):
    options = {"max_new_tokens": 2} if call is explain_generate else {}
    with pytest.raises(UnsupportedArchitectureError, match=r"H \* D must equal E; `llama` has 6 \* 10 = 60 and 48\. Use"):
        call(llama, random_ids(1, 5), explain_config=GradELLMConfig.paper(), **options)


def test_what_generate_itself_refuses_stays_its_own_error(llama):
    with pytest.raises(ValueError, match=r"max_new_tokens") as raised:
        explain_generate(llama, **padded_prompts(), max_new_tokens=0)
    assert not isinstance(raised.value, GradELLMError)
