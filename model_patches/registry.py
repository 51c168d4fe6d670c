"""Which adapter describes which `config.model_type`."""

from importlib.metadata import entry_points
from typing import Any

from . import gpt2, llama, mistral, qwen
from .adapter import ArchitectureAdapter
from .generic import GENERIC

ENTRY_POINT_GROUP = "gradellm_hf.adapters"

_adapters: dict[str, ArchitectureAdapter] = {}
_entry_points_loaded = False


def register_adapter(adapter: ArchitectureAdapter) -> None:
    """Makes `adapter` the one for its `model_types`, in place of any registered before.

    Raises:
        TypeError: It is not an ArchitectureAdapter.
    """
    if not isinstance(adapter, ArchitectureAdapter):
        raise TypeError(f"Expected an ArchitectureAdapter, got {type(adapter).__name__}.")
    for model_type in adapter.model_types:
        _adapters[model_type] = adapter


def registered_adapters() -> dict[str, ArchitectureAdapter]:
    """The adapters by `model_type`: built in, from the entry-point group `gradellm_hf.adapters`, and registered by hand."""
    _load_entry_points()
    return dict(_adapters)


def find_adapter(model: Any) -> ArchitectureAdapter:
    """The adapter for a model; the generic one where its family has none of its own."""
    return registered_adapters().get(model.config.model_type, GENERIC)


def _load_entry_points() -> None:
    """An entry point names an ArchitectureAdapter. Adapters registered by hand win over those of the same type."""
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True
    by_hand = dict(_adapters)
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        register_adapter(entry_point.load())
    _adapters.update({t: a for t, a in by_hand.items() if a not in _BUILT_IN})


_BUILT_IN = (gpt2.ADAPTER, llama.ADAPTER, mistral.ADAPTER, qwen.ADAPTER)
for _adapter in _BUILT_IN:
    register_adapter(_adapter)
