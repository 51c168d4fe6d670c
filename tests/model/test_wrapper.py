"""`GradELLM`: from text and chats to explanations."""

import copy
import inspect
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from gradellm_hf import (
    GradELLMConfig,
    InvalidInputError,
    explain_dataset,
    explain_generate,
    explain_sequences,
    explain_stream,
    verify,
)
from gradellm_hf.methods import get_method, grad_ellm, method_names
from gradellm_hf.metrics import deletion, insertion, pi_soft_nc, pi_soft_ns, rank_correlation, soft_nc, soft_ns
from gradellm_hf.model import GradELLM
from gradellm_hf.results.explanation import Explanation
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, random_ids, small_llama
from tests.support.tiny_tokenizers import KINDS, byte_fallback_bpe, byte_level_bpe

CHAT = [{"role": "user", "content": "What is the capital of Italy?"}]
GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def smol(smollm2):
    return GradELLM(*smollm2)


def tiny(tokenizer=None, **options):
    tokenizer = tokenizer or byte_level_bpe()
    return GradELLM(small_llama(vocab_size=len(tokenizer)), tokenizer, **options)


def assert_explains(explanation, out, tokenizer):
    (expected,) = out.explanations(tokenizer)
    assert explanation.token_ids == expected.token_ids
    assert explanation.tokens == expected.tokens
    assert explanation.prompt_length == expected.prompt_length
    assert_same_heatmaps(explanation.attributions, expected.attributions)


def test_what_the_model_writes_after_a_text(smol, smollm2):
    model, tokenizer = smollm2
    explanation = smol.explain("The capital of Italy is", **GREEDY)
    assert isinstance(explanation, Explanation)
    assert explanation.text.startswith("The capital of Italy is Rome")
    inputs = tokenizer("The capital of Italy is", return_tensors="pt")
    assert_explains(explanation, explain_generate(model, **inputs, **GREEDY), tokenizer)


def test_what_the_model_answers_in_a_chat(smol, smollm2):
    model, tokenizer = smollm2
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    explanation = smol.explain(CHAT, **GREEDY)
    assert_explains(explanation, explain_generate(model, **inputs, **GREEDY), tokenizer)


@pytest.mark.parametrize("prompt", ["The capital of Italy is", CHAT], ids=["text", "chat"])
def test_why_it_would_write_a_given_text(smol, smollm2, prompt):
    model, tokenizer = smollm2
    target = " Paris, of course."
    explanation = smol.explain(prompt, target)
    prompt_ids = smol.explain(prompt, **GREEDY).token_ids[: explanation.prompt_length]
    assert explanation.token_ids[: explanation.prompt_length] == prompt_ids
    assert "".join(explanation.tokens[explanation.prompt_length :]) == target
    out = explain_sequences(model, torch.tensor([explanation.token_ids]), explanation.prompt_length)
    assert_explains(explanation, out, tokenizer)


def test_what_the_model_writes_is_explained_the_same_when_given_as_the_target(smol):
    written = smol.explain("The capital of Italy is", **GREEDY)
    given = smol.explain("The capital of Italy is", "".join(written.tokens[written.prompt_length :]))
    assert given.token_ids == written.token_ids
    assert_same_heatmaps(given.attributions, written.attributions)


def test_all_of_a_target_is_explained_also_behind_an_end_of_sequence_token(smol, smollm2):
    model, tokenizer = smollm2
    target = "Hello!<|im_end|>\n<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\nBlue<|im_end|>"
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    whole, other = smol.explain([CHAT, "Rome is"], [target, " a city<|im_end|><|im_end|>"])
    assert "".join(whole.tokens[whole.prompt_length :]) == target
    assert "".join(other.tokens[other.prompt_length :]) == " a city<|im_end|><|im_end|>"
    ids = torch.tensor([whole.token_ids])
    logits = model(ids).logits[0, whole.prompt_length - 1 : -1]
    chosen = logits.gather(-1, ids[0, whole.prompt_length :, None])[:, 0]
    torch.testing.assert_close(whole.target_scores, chosen, rtol=1e-3, atol=1e-3)
    assert (whole.attributions.amax(-1) > 0).all()
    alone = smol.explain(CHAT, target)
    assert alone.token_ids == whole.token_ids
    assert_same_heatmaps(alone.attributions, whole.attributions)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("The capital is", " Rome"),
        ("The capital is", "Rome"),
        ("The capital is Ro", "me"),
        ("a ", "Italy is it"),
        ("a\n", " b"),
    ],
)
def test_the_target_follows_the_prompt_directly_whatever_the_tokenizer(kind, prompt, target):
    tokenizer = KINDS[kind]()
    explanation = tiny(tokenizer).explain(prompt, target)
    prompt_ids = tokenizer(prompt)["input_ids"]
    assert explanation.token_ids[: explanation.prompt_length] == prompt_ids
    generated = "".join(explanation.tokens[explanation.prompt_length :])
    # A unigram model with metaspace has no way to write a piece without a space after a line break or another space.
    assert generated == target or (kind == "unigram with metaspace" and generated.strip() == target.strip())


def test_a_list_gives_a_list_and_each_is_what_it_is_alone():
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.chat_template = "{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}</s>"
    model = tiny(tokenizer)
    prompts = ["The capital of Italy is", CHAT, "Hello"]
    for options, targets in ((GREEDY, [None] * 3), ({}, [" Rome.", "It is Rome!", ", you and all the others there"])):
        target = {} if options else {"target": targets}
        explanations = model.explain(prompts, **target, **options)
        for prompt, one, explanation in zip(prompts, targets, explanations, strict=True):
            alone = model.explain(prompt, one, **options)
            assert explanation.token_ids == alone.token_ids
            assert explanation.prompt_length == alone.prompt_length
            assert_same_heatmaps(explanation.attributions, alone.attributions)


def test_a_list_of_one_is_a_list_and_several_sequences_are_too():
    model = tiny()
    assert len(model.explain(["Rome"], **GREEDY)) == 1
    assert len(model.explain("Rome", max_new_tokens=3, do_sample=True, num_return_sequences=2)) == 2


def test_the_padding_side_of_the_tokenizer_does_not_matter():
    right = copy.deepcopy(byte_level_bpe())
    right.padding_side = "right"
    prompts = ["The capital", "Rome is a city"]
    for actual, expected in zip(tiny(right).explain(prompts, **GREEDY), tiny().explain(prompts, **GREEDY)):
        assert actual.tokens == expected.tokens


def test_its_configuration_holds_unless_a_call_says_otherwise():
    config, other = GradELLMConfig(layers=1), GradELLMConfig(layers=2)
    model = tiny(explain_config=config)
    assert model.explain("Rome", "is").explain_config == config
    assert model.explain("Rome", "is", explain_config=other).explain_config == other
    assert model.generate(**padded_prompts(), max_new_tokens=2).explain_config == config
    assert model.generate(**padded_prompts(), max_new_tokens=2, explain_config=other).explain_config == other


def test_generate_is_explain_generate():
    model = tiny()
    assert_same_heatmaps(
        model.generate(**padded_prompts(), max_new_tokens=3, do_sample=False).attributions,
        explain_generate(model.model, **padded_prompts(), max_new_tokens=3, do_sample=False).attributions,
    )


# --- Taken wherever a model is --------------------------------------------------------------------------------------


def streamed(model, **options):
    steps = [step.attributions[0] for step in explain_stream(model, **padded_prompts((6,)), max_new_tokens=3, **options)]
    return torch.cat(steps)


EXPLAINING = {
    "explain_generate": lambda model, **options: explain_generate(model, **padded_prompts(), max_new_tokens=3, **options),
    "explain_sequences": lambda model, **options: explain_sequences(model, random_ids(2, 9), 6, **options),
    "explain_stream": streamed,
    "grad_ellm": lambda model, **options: grad_ellm(model, random_ids(2, 9), 6, **options),
}


@pytest.mark.parametrize("name", EXPLAINING)
def test_functions_that_explain_take_it_with_its_configuration(name):
    def heatmaps(model, **options):
        found = EXPLAINING[name](model, **options)
        return found if isinstance(found, torch.Tensor) else found.attributions

    model = tiny(explain_config=GradELLMConfig(layers=1))
    inner, last, two = model.model, GradELLMConfig(layers=1), GradELLMConfig(layers=2)
    assert not torch.equal(heatmaps(inner), heatmaps(inner, explain_config=last))
    assert torch.equal(heatmaps(model), heatmaps(inner, explain_config=last))
    assert torch.equal(heatmaps(model, explain_config=two), heatmaps(inner, explain_config=two))
    assert torch.equal(heatmaps(GradELLM(inner)), heatmaps(inner))
    assert torch.equal(heatmaps(GradELLM(model)), heatmaps(inner, explain_config=last))
    model.explain_config = {"layers": 1}
    with pytest.raises(InvalidInputError, match="`explain_config` must be a GradELLMConfig, got dict"):
        heatmaps(model)


def test_a_dataset_is_explained_with_its_tokenizer_and_configuration(tmp_path):
    model = tiny(explain_config=GradELLMConfig(layers=1))
    prompts, options = ["The capital", "Rome is"], {"max_new_tokens": 3, "do_sample": False}
    two = GradELLMConfig(layers=2)
    own = explain_dataset(model, prompts, tmp_path / "own", **options)
    nested = explain_dataset(GradELLM(model, model.tokenizer), prompts, tmp_path / "nested", **options)
    other = explain_dataset(model, prompts, tmp_path / "other", explain_config=two, **options)
    for found, config in ((own, model.explain_config), (nested, model.explain_config), (other, two)):
        given = {"tokenizer": model.tokenizer, "explain_config": config}
        expected = explain_dataset(
            model.model, prompts, tmp_path / f"expected-{len(list(tmp_path.iterdir()))}", **given, **options
        )
        for actual, explanation in zip(found, expected, strict=True):
            assert actual.tokens == explanation.tokens
            assert actual.explain_config == explanation.explain_config == config
            assert torch.equal(actual.attributions, explanation.attributions)


def test_verify_takes_it_off():
    model = small_llama()
    assert verify(GradELLM(model, explain_config=GradELLMConfig(layers=1))) == verify(model) > 0


@pytest.mark.parametrize("name", method_names())
def test_methods_take_it_off(name):
    model, ids = small_llama(head_dim=8), random_ids(2, 8)  # `grad_ellm_paper` needs H * D == E
    expected = get_method(name)(model, ids, 6)
    assert expected.any()
    assert torch.equal(get_method(name)(GradELLM(model), ids, 6), expected)


@pytest.mark.parametrize("metric", [soft_ns, soft_nc, pi_soft_ns, pi_soft_nc, deletion, insertion, rank_correlation])
def test_metrics_take_it_off(metric):
    model, ids = small_llama(), random_ids(2, 8)
    heatmap = torch.rand(2, 2, 8, generator=torch.Generator().manual_seed(0))
    expected = metric(model, ids, 6, heatmap)
    assert expected.isfinite().all()
    assert torch.equal(metric(GradELLM(model), ids, 6, heatmap), expected)


def test_everything_else_is_the_wrapped_models():
    model = tiny()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, model.model(ids).logits)
    assert model.config is model.model.config
    assert model.device == model.model.device
    assert model.get_input_embeddings() is model.model.get_input_embeddings()
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.no_such_thing
    assert copy.deepcopy(model).config.vocab_size == model.config.vocab_size
    assert repr(model) == "GradELLM(LlamaForCausalLM, explain_config=None)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: GradELLM(m.model).explain("Rome"), "no tokenizer"),
        (lambda m: m.explain(""), "prompt is empty"),
        (lambda m: m.explain(["Rome", ""]), "prompt is empty"),
        (lambda m: m.explain([]), "at least one"),
        (lambda m: m.explain(7), "got 7"),
        (lambda m: m.explain(["Rome", 7]), "Give a text, a chat"),
        (lambda m: m.explain(CHAT), "no chat template"),
        (lambda m: m.explain("Rome \ud800"), "The prompt holds half a character"),
        (lambda m: m.explain(["Rome", "\udc00"], ["a", "b"]), "The prompt holds half a character"),
        (lambda m: m.explain("Rome", "is \ud800"), "`target` holds half a character"),
        (lambda m: m.explain("Rome", ""), "`target` must be a non-empty text for each of the 1 prompts"),
        (lambda m: m.explain(["Rome", "is"], "it"), "for each of the 2 prompts"),
        (lambda m: m.explain("Rome", 7), "got 7"),
        (lambda m: m.explain("Rome", "is", max_new_tokens=4), r"\['max_new_tokens'\] mean nothing"),
        (lambda m: GradELLM(small_llama(), m.tokenizer).explain("Rome 👩"), "the model knows 97 tokens"),
        (lambda m: GradELLM(m.model, m.tokenizer, m.config), "got LlamaConfig"),
        (lambda m: GradELLM.from_pretrained("nowhere", explain_config={"layers": 1}), "`explain_config` must be .* got dict"),
        (lambda m: GradELLM.from_pretrained("nowhere", explain_config=m.config), "`explain_config` must be .* got LlamaConfig"),
        (lambda m: GradELLM.from_pretrained("nowhere", config="here"), "`config` must be the model's configuration.* got str"),
        (
            lambda m: GradELLM.from_pretrained("nowhere", explain_config=GradELLMConfig(), config=GradELLMConfig()),
            "`config` must be the model's configuration.* got GradELLMConfig",
        ),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call(tiny())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny().model.save_pretrained(folder)
    byte_level_bpe().save_pretrained(folder)
    return folder


def test_loaded_from_a_folder(folder):
    loaded, config = GradELLM.from_pretrained(folder, explain_config=GradELLMConfig(layers=1)), GradELLMConfig(layers=1)
    assert not loaded.model.training
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.explain_config == config
    expected = tiny(explain_config=config).explain(["The capital", "Rome is"], **GREEDY)
    for actual, other in zip(loaded.explain(["The capital", "Rome is"], **GREEDY), expected, strict=True):
        assert actual.tokens == other.tokens
        assert_same_heatmaps(actual.attributions, other.attributions)


def test_options_reach_the_loading(folder, tmp_path):
    half = GradELLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=None, attn_implementation="eager")
    assert half.dtype == torch.bfloat16
    assert half.config._attn_implementation == "eager"
    tokenizer = byte_fallback_bpe()
    assert GradELLM.from_pretrained(folder, tokenizer=tokenizer).tokenizer is tokenizer
    with pytest.raises(OSError, match="nowhere"):
        GradELLM.from_pretrained(tmp_path / "nowhere")


def test_config_is_the_models_as_in_transformers(folder):
    config = AutoConfig.from_pretrained(folder)
    config.rms_norm_eps, config.rope_parameters = 0.5, {"rope_type": "default", "rope_theta": 100.0}
    loaded = GradELLM.from_pretrained(folder, config=config, explain_config=GradELLMConfig(layers=1))
    assert loaded.explain_config == GradELLMConfig(layers=1)
    assert loaded.config.rms_norm_eps == 0.5
    expected = AutoModelForCausalLM.from_pretrained(folder, config=config)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded(ids).logits, expected(ids).logits)
    assert not torch.equal(loaded(ids).logits, tiny().model(ids).logits)


def test_the_tokenizer_is_found_by_a_given_config_too(folder, tmp_path):
    """Of a vocabulary and merges alone, only the model's configuration tells which tokenizer they belong to."""
    written = json.loads((folder / "tokenizer.json").read_text())["model"]
    config = GPT2Config(vocab_size=len(byte_level_bpe()), n_embd=24, n_layer=2, n_head=3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(written["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in written["merges"]))
    loaded = GradELLM.from_pretrained(tmp_path, config=config)
    ids = loaded.explain("The capital", **GREEDY).token_ids
    assert ids[: -GREEDY["max_new_tokens"]] == byte_level_bpe()("The capital")["input_ids"]


def test_a_model_of_which_half_lies_on_disk(folder, tmp_path):
    names = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(5)), "model.norm", "model.rotary_emb", "lm_head"]
    device_map = {
        name: "disk" if name in ("model.embed_tokens", "model.layers.1", "model.layers.4") else "cpu" for name in names
    }
    loaded = GradELLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    assert loaded.hf_device_map == device_map
    assert loaded.model.get_input_embeddings().weight.device.type == "meta"
    assert_same_heatmaps(
        loaded.explain("The capital", **GREEDY).attributions, tiny().explain("The capital", **GREEDY).attributions
    )


def test_explain_takes_what_generate_takes():
    assert inspect.signature(GradELLM.explain).parameters["generate_kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    model = tiny()
    torch.manual_seed(3)
    sampled = model.explain("Rome", do_sample=True, top_k=7, max_new_tokens=6)
    torch.manual_seed(3)
    expected = model.model.generate(**byte_level_bpe()("Rome", return_tensors="pt"), do_sample=True, top_k=7, max_new_tokens=6)
    assert sampled.token_ids == expected[0].tolist()[: len(sampled.token_ids)]
