"""From the object a user passes to what the engines need: the inner model, its attention layers, its state checked."""

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model_patches import find_adapter

from ..engines.position_local import attention_handler
from ..configuration import GradELLMConfig
from ..errors import InvalidInputError, UnsupportedArchitectureError
from .identity import findings, look_again
from .offloading import reload_offloaded_weights
from .quantization import differentiable_weights
from .switches import shared
from .tensor_parallel import check_distribution
from .tolerances import logits_difference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_FREE_TYPES = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})

_PLAIN_TOLERANCES = {torch.bfloat16: 1e-1, torch.float16: 2e-2}  # elsewhere 1e-3
_PROBE_LENGTH = 64

#: By the identity of a config: the attention implementation that it has in this thread.
_switched: ContextVar[dict[int, str]] = ContextVar("gradellm_switched_attention", default={})  # noqa: B039 - never changed


@dataclass(frozen=True)
class _Layout:
    """The attention modules of a model in the order in which a forward pass runs them; weak, as they belong to the model."""

    modules: list["weakref.ref[nn.Module]"]
    calls_interface: bool
    keeps_cache: bool


def unwrap(model: Any) -> "PreTrainedModel":
    """The Transformers model inside `torch.compile`, data-parallel and PEFT wrappers (adapters stay active).

    Raises:
        InvalidInputError: It is not a model with `generate`.
        UnsupportedArchitectureError: A PEFT method puts virtual tokens in front of the prompt.
    """
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif isinstance(inner, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
            if getattr(inner.active_peft_config, "is_prompt_learning", False):
                raise UnsupportedArchitectureError(
                    f"The PEFT method {inner.active_peft_config.peft_type} puts virtual tokens in front of the prompt, which "
                    "have no token to attribute to. Use an adapter that changes weights only (LoRA and its kin)."
                )
            if getattr(inner.active_peft_config, "alora_invocation_tokens", None):
                raise UnsupportedArchitectureError(
                    "An activated LoRA (`alora_invocation_tokens`) changes the weights in the middle of a prompt, only while "
                    "`generate` runs, which the explanation cannot repeat. Use an ordinary LoRA."
                )
            inner = inner.get_base_model()
        elif (inside := _inside(inner)) is not inner:
            inner = inside
        else:
            break
    if not isinstance(inner, nn.Module) or not hasattr(inner, "generate") or not hasattr(inner, "config"):
        raise InvalidInputError(
            f"Expected a Transformers model with `generate`, such as AutoModelForCausalLM.from_pretrained returns, got "
            f"{type(model).__name__}."
        )
    if not {"input_ids", "position_ids"} & (parameters := forward_parameters(inner)):
        raise InvalidInputError(
            f"`{type(inner).__name__}.forward` has neither `input_ids` nor `position_ids` among its parameters "
            f"{sorted(parameters)}, so what it understands cannot be told, and no Transformers model was found inside. Give it "
            "the signature of the model that it calls, or explain that model itself."
        )
    return inner  # type: ignore[return-value]


def _inside(model: Any) -> Any:
    """The model that the `generate` of a module which wraps it (with a value head, say) runs; else `model` itself."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel) or not isinstance(model, nn.Module):
        return model
    runs = getattr(getattr(model, "generate", None), "__self__", None)
    if isinstance(runs, PreTrainedModel):  # passed on by `__getattr__`
        return runs
    parts = [module for module in model.modules() if module is not model]
    models = [
        part for part in parts if hasattr(part, "peft_config") or (isinstance(part, PreTrainedModel) and part.can_generate())
    ]
    outermost = models[0] if models else model  # `modules` gives a model before its parts
    return outermost if set(models) <= set(outermost.modules()) else model


def check_model(model: "PreTrainedModel") -> None:
    """Refuses what cannot be explained exactly; the first look at a model in a call, which finds what has changed about it.

    Raises:
        UnsupportedArchitectureError: The model is an encoder-decoder, has no softmax attention, or is spread over processes
            in a way that is not known here.
        InvalidInputError: It is in training mode, or its weights were created in inference mode.
    """
    model_type = getattr(model.config, "model_type", type(model).__name__)
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(
            f"`{model_type}` is an encoder-decoder model: its source text reaches the output through cross-attention, which "
            "Grad-ELLM does not describe. Use a decoder-only model."
        )
    if model_type in ATTENTION_FREE_TYPES:
        raise UnsupportedArchitectureError(
            f"`{model_type}` has no softmax attention, so there are no attention maps for Grad-ELLM to weigh. Use a model "
            "with attention layers."
        )
    check_distribution(model)
    training = "The model" if model.training else next((name for name, m in model.named_modules() if _drops_out(m)), None)
    if training is not None:
        raise InvalidInputError(
            f"{training} is in training mode, in which dropout makes its outputs random. Call `model.eval()` first."
        )
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.is_inference():
        raise InvalidInputError(
            "The model's weights were created inside `torch.inference_mode()`, so autograd cannot work with them. Load the "
            "model outside of it; explaining inside of it is fine."
        )
    look_again(model)


def _drops_out(module: nn.Module) -> bool:
    """Whether a part of a model in evaluation mode was left in training mode and is random there."""
    rate = getattr(module, "p", 0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0
    return module.training and bool(rate or getattr(module, "attention_dropout", 0))


def attention_layers(model: "PreTrainedModel") -> list[nn.Module]:
    """The attention modules in the order in which a forward pass runs them; one that runs twice is there twice.

    Raises:
        UnsupportedArchitectureError: None are found.
    """
    return [module for ref in _layout(model).modules if (module := ref()) is not None]


def calls_attention_interface(model: "PreTrainedModel") -> bool:
    """Whether the model looks up its attention function in Transformers' AttentionInterface."""
    return _layout(model).calls_interface


def keeps_cache(model: "PreTrainedModel") -> bool:
    """Whether the model hands a cache of keys and values from call to call."""
    return _layout(model).keeps_cache


def forward_parameters(model: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def _layout(model: "PreTrainedModel") -> _Layout:
    """Found by running one token through the model and seeing who calls the attention function; once per model."""
    known = findings(model)
    if known.layout is None:
        modules: list[nn.Module] = []

        def count(function: Callable, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not getattr(module, "is_causal", True):
                raise UnsupportedArchitectureError(
                    f"`{model.config.model_type}` attends in both directions ({type(module).__name__}); only causal models can "
                    "be explained. Load it as a decoder (`is_decoder=True` in its config), if it was trained as one."
                )
            modules.append(module)
            if not torch.is_grad_enabled():
                raise UnsupportedArchitectureError(
                    f"`{model.config.model_type}` switches gradients off in a part of its own forward pass (around "
                    f"{type(module).__name__}), so they cannot be followed through it."
                )
            return function(module, *args, **kwargs)

        kwargs = {"use_cache": True} if "use_cache" in forward_parameters(model) else {}
        with explainable(model), torch.enable_grad(), reload_offloaded_weights(model), attention_handler(count):
            token = torch.zeros(1, 1, dtype=torch.long, device=input_device(model))
            outputs = model(input_ids=token, return_dict=True, **kwargs)
        if not (calls_interface := bool(modules)):
            modules = _declared_attention(model)
        known.layout = _Layout(
            modules=[weakref.ref(module) for module in modules],
            calls_interface=calls_interface,
            keeps_cache=getattr(outputs, "cache", None) is not None,
        )
    return known.layout


def _declared_attention(model: "PreTrainedModel") -> list[nn.Module]:
    try:
        return find_adapter(model).attention_modules(model)
    except AttributeError as error:
        raise UnsupportedArchitectureError(
            f"`{model.config.model_type}` ({type(model).__name__}) does not call Transformers' AttentionInterface, and its "
            f"attention modules were not found: {error}"
        ) from error


def explained_layers(model: "PreTrainedModel", config: GradELLMConfig) -> list[int]:
    """Checks the model and the configuration against each other; returns the explained layers, ascending."""
    check_model(model)
    if not calls_attention_interface(model) and (config.channel, config.spatial) != ("heads", "attention"):
        raise UnsupportedArchitectureError(
            f"`{model.config.model_type}` does not call Transformers' AttentionInterface, so its queries and keys cannot be "
            'seen. Use `spatial="attention"` and `channel="heads"`.'
        )
    if config.channel == "attention_output":
        _check_flattened_width(model)
    return config.layer_indices(len(attention_layers(model)))


def _check_flattened_width(model: "PreTrainedModel") -> None:
    """What the config tells before any text is written; the projections themselves are checked when they run."""
    text_config = model.config.get_text_config(decoder=True)
    heads, width = text_config.num_attention_heads, text_config.hidden_size
    try:
        head_dim = getattr(text_config, "head_dim", None) or width // heads
    except RuntimeError:  # it differs from layer to layer
        return
    if heads * head_dim != width:
        raise UnsupportedArchitectureError(
            f'`channel="attention_output"` multiplies the gradient at the attention output with the values of all heads, so '
            f"H * D must equal E; `{model.config.model_type}` has {heads} * {head_dim} = {heads * head_dim} and {width}. Use "
            '`channel="heads"`.'
        )


def not_finite(model: "PreTrainedModel", config: GradELLMConfig) -> InvalidInputError:
    """The error for logits, gradients or targets that are not finite."""
    source = "or the `target` function produced" if callable(config.target) else "produced"
    return InvalidInputError(
        f"The explained model {source} NaN or infinite values in {model.dtype}. Check its weights, or load it with a dtype "
        "of larger range (`dtype=torch.bfloat16` or `torch.float32`). A token whose logit is minus infinity, which the model "
        "never writes, is no target and no foil."
    )


def input_device(model: "PreTrainedModel") -> torch.device:
    """Where a model reads token ids, also where accelerate keeps its weights elsewhere."""
    embedding: Any = model.get_input_embeddings()
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    device = torch.device(embedding.weight.device if device is None else device)
    return torch.device("cpu") if device.type == "meta" else device


def vocabulary_size(model: "PreTrainedModel") -> int:
    """Number of token ids that the model can read."""
    embedding: Any = model.get_input_embeddings()
    sizes = (getattr(module, "num_embeddings", None) for module in embedding.modules())  # PEFT's wrappers have none
    size = next((size for size in sizes if size is not None), None)  # weights may be packed, or in other processes
    return int(embedding.weight.shape[0] if size is None else size)


def placeholder_mask(
    model: "PreTrainedModel", token_ids: Tensor, modalities: tuple[str, ...] = ("image", "video", "audio")
) -> Tensor | None:
    """Which tokens stand for a part of an image, a video or a sound; None for models that do not read any of it."""
    names = (f"{modality}_token_{suffix}" for modality in modalities for suffix in ("id", "index"))
    ids = [token_id for name in names if (token_id := getattr(model.config, name, None)) is not None]
    return torch.isin(token_ids, torch.tensor(ids, device=token_ids.device)) if ids else None


@contextlib.contextmanager
def explainable(model: "PreTrainedModel", padded: bool = False) -> Iterator[None]:
    """The context in which engines run a model: no inference mode, no compiled modules, an attention that can be watched.

    Args:
        padded: Whether some rows of what is to be explained are padded.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(differentiable_weights(model))
        if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules()):
            stack.enter_context(_uncompiled())
        if needs_plain_attention(model):
            check_plain_attention(model, padded)
            stack.enter_context(attention_implementation(model, plain_attention(model)))
        elif findings(model).layout is not None and not calls_attention_interface(model):
            stack.enter_context(attention_implementation(model, "eager"))  # which returns its attention weights
        yield


@shared
@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def needs_plain_attention(model: "PreTrainedModel") -> bool:
    """Whether the model, or a part of it, runs with flash, flex or a user's own attention, which cannot be watched."""
    configs = map(_config_of, model.modules())
    return any(config._attn_implementation not in (None, "eager", "sdpa") for config in configs if config is not None)


def plain_attention(model: "PreTrainedModel") -> str:
    """What computes the same: sdpa, but in models whose attention it cannot express (soft-capping, sinks)."""
    supported = (getattr(module, "_supports_sdpa", True) for module in model.modules())
    return "sdpa" if all(supported) else "eager"


def check_plain_attention(model: "PreTrainedModel", padded: bool) -> None:
    """Runs a short text with the model's own attention and with the one that it is to be explained with; once a model.

    Raises:
        UnsupportedArchitectureError: They differ by more than rounding.
    """
    own, plain = model.config.get_text_config(decoder=True)._attn_implementation, plain_attention(model)
    key = (own, model.dtype, padded)
    differences = findings(model).differences
    if key not in differences:
        length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or _PROBE_LENGTH
        text = torch.arange(min(length, _PROBE_LENGTH), device=input_device(model))[None] % vocabulary_size(model)
        padding = text.shape[1] // 8 if padded else 0
        mask = (torch.arange(text.shape[1], device=text.device) >= padding).long()[None]
        with torch.no_grad():
            expected = model(input_ids=text, attention_mask=mask, return_dict=True).logits[:, padding:]
            with attention_implementation(model, plain):
                actual = model(input_ids=text, attention_mask=mask, return_dict=True).logits[:, padding:]
        differences[key] = logits_difference(actual, expected)
    if not differences[key] <= _PLAIN_TOLERANCES.get(model.dtype, 1e-3):
        raise UnsupportedArchitectureError(
            f"The attention implementation `{own}` cannot be watched, and `{plain}`, with which the model would be explained "
            f"instead, changes its logits by {differences[key]:.1e} of their size: it computes something else. Load the model "
            f'with `attn_implementation="{plain}"`, and generate and explain with that.'
        )


@contextlib.contextmanager
def attention_implementation(model: "PreTrainedModel", name: str) -> Iterator[None]:
    """Switches the model's attention implementation, for this thread only: others may generate with its own meanwhile.

    Modules read it off their configs: `set_attn_implementation` declines for architectures that choose between their own
    implementations.
    """
    configs = {id(config): config for config in map(_config_of, model.modules()) if config is not None}
    with contextlib.ExitStack() as stack:
        for config in configs.values():
            stack.enter_context(_switchable(_class_that_defines_attention(config)))
        token = _switched.set({**_switched.get(), **dict.fromkeys(configs, name)})
        stack.callback(_switched.reset, token)
        yield


def _config_of(module: nn.Module) -> Any:
    from transformers import PreTrainedConfig

    config = getattr(module, "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def _class_that_defines_attention(config: Any) -> type:
    """Transformers' own class of configs, but for the few whose class defines the property anew."""
    classes = type(config).__mro__
    return next(cls for cls in classes if isinstance(vars(cls).get("_attn_implementation"), property))


@shared
@contextlib.contextmanager
def _switchable(config_class: type) -> Iterator[None]:
    """Configs of this class have the attention implementation to which a thread has switched them, in that thread."""
    own: Any = vars(config_class)["_attn_implementation"]

    def switched(config: Any) -> str | None:
        return _switched.get().get(id(config)) or own.fget(config)

    config_class._attn_implementation = property(switched, own.fset)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        config_class._attn_implementation = own  # type: ignore[attr-defined]
