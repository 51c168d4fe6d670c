"""The model that a user passes: taken out of its wrappers, and refused if it cannot be explained exactly."""

from typing import TYPE_CHECKING, Any

from torch import nn

from ..configuration import GradELLMConfig, checked_config
from ..errors import InvalidInputError, UnsupportedArchitectureError
from .reading import forward_parameters
from .tensor_parallel import check_distribution

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_FREE_TYPES = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})


class ModelWrapper:
    """A base class for what wraps a model and has a configuration. It can be passed in place of a model everywhere.

    Attributes:
        model: The wrapped model.
        explain_config: The configuration for calls that give none.
    """

    model: Any
    explain_config: GradELLMConfig | None


def without_wrapper(model: Any, explain_config: GradELLMConfig | None) -> tuple[Any, GradELLMConfig]:
    """The model of a call and what it explains: as given, else as a `ModelWrapper` around the model has it, else the default.

    Raises:
        InvalidInputError: `explain_config` is not a GradELLMConfig.
    """
    while isinstance(model, ModelWrapper):
        model, explain_config = model.model, model.explain_config if explain_config is None else explain_config
    return model, checked_config(explain_config) or GradELLMConfig()


def unwrap(model: Any) -> "PreTrainedModel":
    """The Transformers model inside `GradELLM`, `torch.compile`, data-parallel and PEFT wrappers (adapters stay active).

    Raises:
        InvalidInputError: It is not a model with `generate`.
        UnsupportedArchitectureError: A PEFT method puts virtual tokens in front of the prompt.
    """
    inner: Any = model
    while True:
        if isinstance(inner, ModelWrapper):
            inner = inner.model
        elif hasattr(inner, "_orig_mod"):
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
        else:
            inside = _inside(inner)
            if inside is inner:
                break
            inner = inside
    is_model = isinstance(inner, nn.Module) and hasattr(inner, "generate") and hasattr(inner, "config")
    if not is_model:
        raise InvalidInputError(
            f"Expected a Transformers model with `generate`, such as AutoModelForCausalLM.from_pretrained returns, got "
            f"{type(model).__name__}."
        )
    parameters = forward_parameters(inner)
    if not parameters & {"input_ids", "position_ids"}:
        raise InvalidInputError(
            f"`{type(inner).__name__}.forward` has neither `input_ids` nor `position_ids` among its parameters "
            f"{sorted(parameters)}, so what it understands cannot be told, and no Transformers model was found inside. Give it "
            "the signature of the model that it calls, or explain that model itself."
        )
    unwrapped: PreTrainedModel = inner
    return unwrapped


def _inside(model: Any) -> Any:
    """The model inside a module that wraps it and has its `generate` (a model with a value head, say); else `model` itself."""
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
    """Refuses what cannot be explained exactly.

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


def _drops_out(module: nn.Module) -> bool:
    """Whether a module is in training mode and random there, while the model is in evaluation mode."""
    rate = getattr(module, "p", 0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0
    return module.training and bool(rate or getattr(module, "attention_dropout", 0))


def not_finite(model: "PreTrainedModel", config: GradELLMConfig) -> InvalidInputError:
    """The error for logits, gradients or targets that are not finite."""
    source = "or the `target` function produced" if callable(config.target) else "produced"
    return InvalidInputError(
        f"The explained model {source} NaN or infinite values in {model.dtype}. Check its weights, or load it with a dtype "
        "of larger range (`dtype=torch.bfloat16` or `torch.float32`). A token whose logit is minus infinity, which the model "
        "never writes, is no target and no foil."
    )
