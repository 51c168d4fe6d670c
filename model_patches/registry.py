"""Which adapter describes which `config.model_type`."""

import dataclasses
import functools
import importlib
import pkgutil
import warnings
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from .adapter import ArchitectureAdapter
from .generic import GENERIC

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENTRY_POINT_GROUP = "gradellm_hf.adapters"

_by_hand: dict[str, ArchitectureAdapter] = {}


def register_adapter(adapter: ArchitectureAdapter) -> None:
    """Makes `adapter` the one for its `model_types`, in place of any other: built in, installed or registered before.

    Raises:
        TypeError: It is not an ArchitectureAdapter.

    Examples:
        >>> register_adapter(ArchitectureAdapter(model_types=("my_llama",), attention="attn"))
    """
    _by_hand.update(_by_type(adapter))


def registered_adapters() -> dict[str, ArchitectureAdapter]:
    """The adapters by `model_type`. Those registered by hand come before those of installed packages, and these before ours.

    Examples:
        >>> registered_adapters()["llama"].decoder_layers
        'model.layers'
    """
    return {**_built_in(), **_installed(), **_by_hand}


def find_adapter(model: "PreTrainedModel") -> ArchitectureAdapter:
    """The adapter for a model: its own, or that of its text decoder if the model reads more than text, or the generic one.

    Args:
        model: A Transformers model.

    Raises:
        AttributeError: It has no config, or no text decoder.

    Examples:
        >>> find_adapter(model).model_types
        ('llama',)
    """
    adapters = registered_adapters()
    if model.config.model_type in adapters:
        return adapters[model.config.model_type]
    text_type = model.config.get_text_config(decoder=True).model_type
    return _from_outside(adapters[text_type], model) if text_type in adapters else GENERIC


def _from_outside(adapter: ArchitectureAdapter, model: "PreTrainedModel") -> ArchitectureAdapter:
    """The adapter of a text decoder, with the path to it in the model that it is a part of."""
    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    _, _, layers = adapter.decoder_layers.partition(".")  # the first name is the decoder's in the text-only model
    return dataclasses.replace(adapter, decoder_layers=f"{path}.{layers}")


@functools.cache
def _built_in() -> dict[str, ArchitectureAdapter]:
    """Every adapter that a module of this package holds: a family is added by adding its file."""
    found: dict[str, ArchitectureAdapter] = {}
    for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__, f"{__package__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, ArchitectureAdapter):
                found.update(_by_type(value))
    return found


@functools.cache
def _installed() -> dict[str, ArchitectureAdapter]:
    """The adapters that installed packages name in their entry points. One that fails is left out, with a warning."""
    found: dict[str, ArchitectureAdapter] = {}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            found.update(_by_type(entry_point.load()))
        except Exception as error:
            warnings.warn(
                f"The entry point `{entry_point.name} = {entry_point.value}` of the group `{ENTRY_POINT_GROUP}` was left "
                f"out, as it failed with {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
    return found


def _by_type(adapter: ArchitectureAdapter) -> dict[str, ArchitectureAdapter]:
    if not isinstance(adapter, ArchitectureAdapter):
        raise TypeError(f"Expected an ArchitectureAdapter, got {type(adapter).__name__}.")
    return dict.fromkeys(adapter.model_types, adapter)
