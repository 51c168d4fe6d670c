"""Which modules of a model attend, and in which order: seen, not guessed."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from model_patches import find_adapter

from ..errors import UnsupportedArchitectureError
from .compat import cache_of
from .identity import findings
from .interception import attention_handler
from .offloading import reload_offloaded_weights
from .reading import forward_parameters, input_device
from .running import explainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Layout:
    """What a forward pass has shown of a model; kept between calls, so its modules are held weakly.

    Attributes:
        modules: The attention modules in the order in which a forward pass runs them; one that runs twice is there twice.
        calls_interface: Whether they look up their attention function in Transformers' AttentionInterface.
        keeps_cache: Whether the model hands a cache of keys and values from call to call.
    """

    modules: list["weakref.ref[nn.Module]"]
    calls_interface: bool
    keeps_cache: bool


def find_layout(model: "PreTrainedModel") -> Layout:
    """Found by running one token through the model and seeing who calls the attention function; once per model as it is.

    Raises:
        UnsupportedArchitectureError: No attention modules are found, or they cannot be explained.
    """
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
        with explainable(model), torch.enable_grad(), reload_offloaded_weights(model), attention_handler(model, count):
            token = torch.zeros(1, 1, dtype=torch.long, device=input_device(model))
            outputs = model(input_ids=token, return_dict=True, **kwargs)
        if not (calls_interface := bool(modules)):
            modules = _declared_attention(model)
        known.layout = Layout(
            modules=[weakref.ref(module) for module in modules],
            calls_interface=calls_interface,
            keeps_cache=cache_of(outputs) is not None,
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
