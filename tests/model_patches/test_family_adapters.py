"""Every built-in declaration against the model that it describes: what it names is what the attention computes with."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gradellm_hf import GradELLMConfig, UnsupportedArchitectureError, explain_sequences
from gradellm_hf.architecture.facts import look_at
from gradellm_hf.architecture.interception import attention_handler
from gradellm_hf.architecture.reading import forward_parameters
from model_patches import find_adapter
from model_patches.registry import _built_in
from tests.support import reference
from tests.support.architectures.lifted_precision import lifted_precision
from tests.support.architectures.tiny_configs import tiny_config, tiny_model
from tests.support.versions import CACHE, VERSION

pytestmark = pytest.mark.slow

ROWS, PROMPT, STEPS = 2, 5, 3

DECLARED = sorted(_built_in())
TEXT_TYPES = [model_type for model_type in DECLARED if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
LATENT = [model_type for model_type in TEXT_TYPES if _built_in()[model_type].value is None]

#: Layouts that a type's default configuration does not have.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, keys for every head": ("falcon", {"multi_query": False, "num_kv_heads": 4}),
    "falcon, keys for every group": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_bigcode, keys for every head": ("gpt_bigcode", {"multi_query": False}),
    "phi3, grouped": ("phi3", {"num_key_value_heads": 2}),
    "granite, grouped": ("granite", {"num_key_value_heads": 2}),
}
CASES = {**{model_type: (model_type, {}) for model_type in TEXT_TYPES}, **VARIANTS}


@functools.cache
def model_of(case: str) -> PreTrainedModel:
    model_type, changes = CASES[case]
    if not changes:
        return tiny_model(model_type, "eager")
    config = tiny_config(model_type)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    with lifted_precision():
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()


def random_ids(length: int) -> Tensor:
    return torch.randint(3, 97, (ROWS, length), generator=torch.Generator().manual_seed(0))


@dataclass
class Seen:
    """What one attention module computed in a forward pass over `[R, N]` tokens."""

    projected: dict[str, Tensor] = field(default_factory=dict)  # as declared, [R, N, C]
    head_outputs: Tensor | None = None  # what the declared output projection receives, [R, N, H * Dv]
    arguments: list[Tensor] = field(default_factory=list)  # query, key and value of the attention, each [R, heads, N, D]
    output: Tensor | None = None  # of the attention, [R, N, H, Dv]
    operands: list[Tensor] = field(default_factory=list)  # of the matrix products in the module


class _Operands(TorchFunctionMode):
    """Collects the operands of matrix products, for models that do not hand their queries to a function."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if getattr(func, "__name__", "") in {"matmul", "__matmul__", "bmm", "baddbmm"}:
            self.found += [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor)]
        return func(*args, **(kwargs or {}))


@functools.cache
def watch(case: str) -> dict[nn.Module, Seen]:
    """Runs the model once; what each declared attention module computed, in the declared order."""
    model = model_of(case)
    adapter = find_adapter(model)
    seen = {module: Seen() for module in adapter.attention_modules(model)}
    operands = _Operands()

    def handler(function: Callable, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = function(module, *args, **kwargs)
        seen[module].arguments, seen[module].output = list(args[:3]), result[0]
        return result

    handles = []
    for module, record in seen.items():
        handles.append(module.register_forward_pre_hook(lambda *_: operands.found.clear()))
        handles.append(module.register_forward_hook(lambda *_, to=record: setattr(to, "operands", list(operands.found))))
        for projection, by_name in declared_projections(model, module):
            keep_projected = lambda m, args, out, to=record, by_name=by_name: to.projected.update(by_name(out))  # noqa: E731
            handles.append(projection.register_forward_hook(keep_projected))
        keep_input = lambda m, args, to=record: setattr(to, "head_outputs", args[0])  # noqa: E731
        handles.append(adapter.output_projection_of(module).register_forward_pre_hook(keep_input))
    with torch.no_grad(), lifted_precision(), attention_handler(model, handler), operands:
        use_cache = {"use_cache": True} if "use_cache" in forward_parameters(model) else {}
        outputs = model(input_ids=random_ids(4), output_attentions=True, **use_cache)
    for handle in handles:
        handle.remove()
    for layer, record in enumerate(seen.values()):
        if not record.arguments:
            weights = outputs.attentions[layer]
            if CACHE in outputs:
                cache = outputs[CACHE].layers[layer]
                record.arguments = [first_query(record, *weights.shape[:2]), cache.keys, cache.values]
                record.output = (weights @ cache.values.expand(-1, weights.shape[1], -1, -1)).transpose(1, 2)
            else:  # openai-gpt keeps none; nothing lies between its projections and its attention
                states = (record.projected[name] for name in ("query", "key", "value"))
                record.arguments = [x.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2) for x in states]
                record.output = F.scaled_dot_product_attention(*record.arguments, is_causal=True).transpose(1, 2)
    return seen


def first_query(record: Seen, rows: int, heads: int) -> Tensor:
    """Among the operands, the one that at the first position, where RoPE turns nothing, is the declared query."""
    declared = record.projected["query"].unflatten(-1, (heads, -1)).transpose(1, 2)
    candidates = [x.reshape(declared.shape) for x in record.operands if x.numel() == declared.numel()]
    return next((x for x in candidates if proportional(x[:, :, 0], declared[:, :, 0])), candidates[0])


def declared_projections(model: PreTrainedModel, attention: nn.Module) -> list:
    reuses_others = getattr(attention, "is_kv_shared_layer", False)
    return [] if reuses_others or model.config.model_type in LATENT else find_adapter(model).projections(attention)


def proportional(x: Tensor, y: Tensor) -> bool:
    """Up to a positive factor: some attentions scale their queries, some rotary embeddings have a gain."""
    return x.shape == y.shape and torch.allclose(x / x.norm(), y / y.norm(), rtol=1e-9, atol=1e-9)


def flattened(states: Tensor) -> Tensor:
    return states.transpose(1, 2).flatten(2)


def has_norm(attention: nn.Module, name: str) -> bool:
    return any(part.startswith(name) and "norm" in part for part, _ in attention.named_modules())


@pytest.mark.parametrize("case", CASES)
def test_the_declared_attention_modules_are_those_that_a_forward_pass_runs(case):
    model = model_of(case)
    ran: list[nn.Module] = []
    declared = find_adapter(model).attention_modules(model)
    handles = [module.register_forward_hook(lambda m, args, out: ran.append(m)) for module in declared]
    with torch.no_grad(), lifted_precision():
        model(input_ids=random_ids(3))
    for handle in handles:
        handle.remove()
    with lifted_precision():
        observed = look_at(model).attention if look_at(model).calls_interface else ran
    assert len(declared) == model.config.num_hidden_layers
    assert list(map(id, declared)) == list(map(id, ran)) == list(map(id, observed))


@pytest.mark.parametrize("case", [case for case in CASES if case not in LATENT])
def test_the_declared_query_key_and_value_are_those_that_the_attention_uses(case):
    compared = 0
    for attention, seen in watch(case).items():
        if not seen.projected:
            continue
        compared += 1
        query, key, value = (seen.projected[name] for name in ("query", "key", "value"))
        repeats = seen.arguments[2].shape[1] * seen.arguments[2].shape[3] // value.shape[-1]  # Falcon repeats before it caches
        used_query, used_key, used_value = (
            flattened(x) for x in (seen.arguments[0], *(y[:, ::repeats] for y in seen.arguments[1:]))
        )
        assert (used_query.shape, used_key.shape, used_value.shape) == (query.shape, key.shape, value.shape)
        if not has_norm(attention, "v"):
            torch.testing.assert_close(used_value, value, rtol=1e-9, atol=1e-9)
        if not has_norm(attention, "q"):
            assert proportional(used_query[:, 0], query[:, 0])
            assert proportional(used_key[:, 0], key[:, 0])
    assert compared > 0


@pytest.mark.parametrize("case", CASES)
def test_the_declared_output_projection_receives_the_head_outputs(case):
    for seen in watch(case).values():
        torch.testing.assert_close(seen.head_outputs, seen.output.flatten(2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model_type", LATENT)
def test_a_latent_attention_is_declared_to_have_no_projections_of_keys_and_values(model_type):
    model = model_of(model_type)
    adapter = find_adapter(model)
    for attention in adapter.attention_modules(model):
        with pytest.raises(AttributeError, match="no module puts out the query, key, value of the heads"):
            adapter.projections(attention)


def paper(case: str) -> Tensor:
    """The signed heatmap of the paper preset, `[R, N, S]`."""
    with lifted_precision():
        config = GradELLMConfig.paper(positive_only=False)
        return explain_sequences(model_of(case), random_ids(PROMPT + STEPS), PROMPT, explain_config=config).attributions


def other_names_for_the_reference(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transcription knows Llama's names; these are those of other families, written down once more."""
    if case == "gptj":
        monkeypatch.setattr(reference, "_attention_modules", lambda model: [block.attn for block in model.transformer.h])
    if case == "opt":
        modules = lambda model: [layer.self_attn for layer in model.model.decoder.layers]  # noqa: E731
        monkeypatch.setattr(reference, "_attention_modules", modules)
    if case.startswith("phi3"):
        monkeypatch.setattr(reference, "_projections", lambda attention: [attention.qkv_proj])
    if case == "gpt_bigcode":
        monkeypatch.setattr(reference, "_attention_modules", lambda model: [block.attn for block in model.transformer.h])
        monkeypatch.setattr(reference, "_widths", lambda model: [32, 8, 8])


NO_INTERFACE = ["bloom", "gpt_neo", "gpt_neox_japanese", "mpt", "openai-gpt", "xglm"]
NO_INTERFACE += [case for case in CASES if case.startswith("falcon")]
NO_INTERFACE += ["codegen", "gptj"] if VERSION < (5, 24) else []
#: Fused projections that hold query, key and value in turns, for a part of the heads each (every head if there is no
#: number): the transcription cannot take them apart.
IN_TURNS: dict[str, tuple[int | None, tuple[str, str, str]]] = {
    "gpt_neox": (None, ("query", "key", "value")),
    "persimmon": (None, ("query", "key", "value")),
    "gpt_bigcode, keys for every head": (None, ("query", "key", "value")),
    "codegen": (4, ("query", "value", "key")),
}
REFUSED = {
    **dict.fromkeys(NO_INTERFACE, "does not call Transformers' AttentionInterface"),
    **dict.fromkeys(LATENT, r"H \* D must equal E"),
    # the last layer reuses the keys and values of another; in 5.0 it has projections all the same
    "gemma3n_text": r"has no `k_proj`|did not run its own of \['key', 'value'\]",
}
PER_LAYER_WIDTHS = [case for case in ("gemma4_text", "gemma4_unified_text") if case in CASES]


@pytest.mark.parametrize("case", [c for c in CASES if c not in [*REFUSED, *PER_LAYER_WIDTHS, *IN_TURNS]])
def test_the_paper_preset_is_the_published_definition(case, monkeypatch):
    other_names_for_the_reference(case, monkeypatch)
    with lifted_precision():
        expected = reference.reference_flattened_heatmaps(model_of(case), random_ids(PROMPT + STEPS), PROMPT)[:, -1]
    error = (paper(case) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-9, f"relative error {error:.1e}"


@pytest.mark.parametrize("case", [case for case in IN_TURNS if case not in REFUSED])
def test_the_paper_preset_is_the_same_with_the_fused_projection_taken_apart(case, monkeypatch):
    fused = paper(case)
    model = model_of(case)
    parts, order = IN_TURNS[case]
    adapter = find_adapter(model)

    def taken_apart(attention: nn.Module) -> list:
        def by_name(output: Tensor) -> dict[str, Tensor]:
            rows = torch.arange(output.shape[-1])  # of the weight matrix, as the checkpoints hold them
            rows = rows.reshape(parts or model.config.num_attention_heads, 3, -1)
            return {name: output[..., rows[:, i].flatten()] for i, name in enumerate(order)}

        return [(getattr(attention, adapter.fused), by_name)]

    monkeypatch.setattr(type(adapter), "projections", lambda self, attention: taken_apart(attention))
    assert fused.abs().max() > 0
    torch.testing.assert_close(paper(case), fused, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::gradellm_hf.GradELLMWarning")  # that the stepwise engine is used
@pytest.mark.parametrize("case", [*REFUSED, *PER_LAYER_WIDTHS])
def test_the_paper_preset_is_refused_where_it_has_no_meaning(case):
    with pytest.raises(UnsupportedArchitectureError, match=REFUSED.get(case, r"H \* D must equal E")):
        paper(case)


def test_the_paper_preset_is_refused_for_latent_attention_even_where_the_widths_agree():
    values = tiny_config("deepseek_v3").to_dict()
    width = values["hidden_size"] // values["num_attention_heads"]
    widths = {"qk_rope_head_dim": width, "qk_head_dim": values["qk_nope_head_dim"] + width, "head_dim": width}
    config = CONFIG_MAPPING["deepseek_v3"].from_dict({**values, **widths})
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedArchitectureError, match="DeepseekV3Attention no module puts out the query, key, value"):
        explain_sequences(model, random_ids(7), 5, explain_config=GradELLMConfig.paper())


def test_the_paper_preset_explains_the_text_of_an_image_text_model_as_its_decoder_alone_does():
    text_model = model_of("llama")
    vision = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8}
    config = CONFIG_MAPPING["llava"](
        text_config=tiny_config("llama"), vision_config={"model_type": "clip_vision_model", "patch_size": 4, **vision}
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").double().eval()
    model.model.language_model.load_state_dict(text_model.model.state_dict())
    model.lm_head.load_state_dict(text_model.lm_head.state_dict())
    with lifted_precision():
        model.model.language_model.rotary_emb = text_model.model.rotary_emb
        options = GradELLMConfig.paper(positive_only=False)
        out = explain_sequences(model, random_ids(PROMPT + STEPS), PROMPT, explain_config=options)
    torch.testing.assert_close(out.attributions, paper("llama"), rtol=1e-9, atol=1e-9)
