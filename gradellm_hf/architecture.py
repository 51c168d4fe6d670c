"""From the object a user passes to what the engines need: the inner model, its attention layers, its state checked."""

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from model_patches import find_adapter

from .attention import attention_handler
from .configuration import GradELLMConfig
from .errors import InvalidInputError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_FREE_TYPES = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})

_layouts: "weakref.WeakKeyDictionary[PreTrainedModel, _Layout]" = weakref.WeakKeyDictionary()


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
            inner = inner.get_base_model()
        else:
            break
    if not isinstance(inner, nn.Module) or not hasattr(inner, "generate") or not hasattr(inner, "config"):
        raise InvalidInputError(
            f"Expected a Transformers model with `generate`, such as AutoModelForCausalLM.from_pretrained returns, got "
            f"{type(model).__name__}."
        )
    return inner  # type: ignore[return-value]


def check_model(model: "PreTrainedModel") -> None:
    """Refuses what cannot be explained exactly.

    Raises:
        UnsupportedArchitectureError: The model is an encoder-decoder, or has no softmax attention.
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
    if model.training:
        raise InvalidInputError(
            "The model is in training mode, in which dropout makes its outputs random. Call `model.eval()` first."
        )
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.is_inference():
        raise InvalidInputError(
            "The model's weights were created inside `torch.inference_mode()`, so autograd cannot work with them. Load the "
            "model outside of it; explaining inside of it is fine."
        )


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


def forward_parameters(model: "PreTrainedModel") -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def _layout(model: "PreTrainedModel") -> _Layout:
    """Found by running one token through the model and seeing who calls the attention function; once a model."""
    if model not in _layouts:
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

        token = torch.zeros(1, 1, dtype=torch.long, device=input_device(model))
        kwargs = {"use_cache": True} if "use_cache" in forward_parameters(model) else {}
        with explainable(model), torch.enable_grad(), attention_handler(count):
            outputs = model(input_ids=token, return_dict=True, **kwargs)
        if not (calls_interface := bool(modules)):
            modules = _declared_attention(model)
        _layouts[model] = _Layout(
            modules=[weakref.ref(module) for module in modules],
            calls_interface=calls_interface,
            keeps_cache=getattr(outputs, "past_key_values", None) is not None,
        )
    return _layouts[model]


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
    if config.channel == "attention_output":
        _check_flattened_width(model)
    return config.layer_indices(len(attention_layers(model)))


def _check_flattened_width(model: "PreTrainedModel") -> None:
    text_config = model.config.get_text_config(decoder=True)
    heads, width = text_config.num_attention_heads, text_config.hidden_size
    head_dim = getattr(text_config, "head_dim", None) or width // heads
    if heads * head_dim != width:
        raise UnsupportedArchitectureError(
            f'`channel="attention_output"` multiplies the gradient at the attention output with the values of all heads, so '
            f"H * D must equal E; `{model.config.model_type}` has {heads} * {head_dim} = {heads * head_dim} and {width}. Use "
            '`channel="heads"`.'
        )


def not_finite(model: "PreTrainedModel") -> InvalidInputError:
    """The error for a model whose logits or gradients are not finite."""
    return InvalidInputError(
        f"The explained model produced NaN or infinite values in {model.dtype}. Check its weights, or load it with a dtype "
        "of larger range (`dtype=torch.bfloat16` or `torch.float32`)."
    )


def input_device(model: "PreTrainedModel") -> torch.device:
    """Where token ids go; hooks move them on where the weights are offloaded."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def vocabulary_size(model: "PreTrainedModel") -> int:
    """Number of token ids that the model can read."""
    return int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]


@contextlib.contextmanager
def explainable(model: "PreTrainedModel") -> Iterator[None]:
    """The context in which engines run a model: no inference mode, no compiled modules, an attention that can be watched."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if model.config._attn_implementation not in (None, "eager", "sdpa"):  # flash or flex attention: same mathematics
            stack.enter_context(attention_implementation(model, "sdpa"))
        yield


@contextlib.contextmanager
def attention_implementation(model: "PreTrainedModel", name: str) -> Iterator[None]:
    """Switches the model's attention implementation; other threads that use the model meanwhile use it too.

    Written into the configs, from which attention modules read it: `set_attn_implementation` declines for architectures
    that choose between their own implementations.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            configs.setdefault(id(config), config)
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for config, implementation in before:  # parents come first: they set those of their parts
            config._attn_implementation = implementation
