"""Which modules of a model attend, and in which order: seen in a forward pass, not guessed from names."""

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UnsupportedArchitectureError
from .adapters import find_adapter
from .compat import cache_of
from .identity import Layout, findings
from .interception import AttentionFunction, attention_handler
from .offloading import reload_offloaded_weights
from .reading import forward_parameters, input_device
from .running import explainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_layout(model: "PreTrainedModel") -> Layout:
    """Runs one token through the model and sees which modules call the attention function. Done once, until the model changes.

    Raises:
        UnsupportedArchitectureError: No attention modules are found, or they cannot be explained.
    """
    known = findings(model)
    if known.layout is not None:
        return known.layout
    callers: list[nn.Module] = []

    def count(function: AttentionFunction, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not getattr(module, "is_causal", True):
            raise UnsupportedArchitectureError(
                f"`{model.config.model_type}` attends in both directions ({type(module).__name__}); only causal models can "
                "be explained. Load it as a decoder (`is_decoder=True` in its config), if it was trained as one."
            )
        callers.append(module)
        if not torch.is_grad_enabled():
            raise UnsupportedArchitectureError(
                f"`{model.config.model_type}` switches gradients off in a part of its own forward pass (around "
                f"{type(module).__name__}), so they cannot be followed through it."
            )
        return function(module, *args, **kwargs)

    options = {"use_cache": True} if "use_cache" in forward_parameters(model) else {}
    with explainable(model), torch.enable_grad(), reload_offloaded_weights(model), attention_handler(model, count):
        token = torch.zeros(1, 1, dtype=torch.long, device=input_device(model))
        outputs = model(input_ids=token, return_dict=True, **options)
    known.layout = Layout(
        modules=[weakref.ref(module) for module in callers or _declared_attention(model)],
        calls_interface=bool(callers),
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
