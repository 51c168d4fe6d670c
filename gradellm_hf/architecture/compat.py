"""What differs between the versions of Transformers that are served: the one place that knows it.

A difference is found by looking at what is there, not by comparing version numbers, so that releases between those that were
tried, and models written for other releases, are served too. Names are those of the newest release:

- The cache is called `cache` in calls of models and in what they return; before 5.24 `past_key_values`, or `cache_params`.
- Attention functions are looked up by `AttentionInterface.get_interface`, since 5.1; before by `[name]`, but for "eager", which
  was the global name of a function in the file of each model. See `interception`.
- A cache layer is asked for the sizes of its masks with a number of queries; in 5.0 to 5.2 with their positions.
"""

import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers.utils import ModelOutput

from ..errors import UnsupportedVersionError

#: The oldest version that the test suite is run with. Newer ones than the newest are taken: the self-checks look at each model.
OLDEST_VERSION = "5.0.0"
#: What models call the cache of keys and values, the newest name first.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")

Output = TypeVar("Output", bound=type[ModelOutput])


def check_version() -> None:
    """Raises UnsupportedVersionError if Transformers is older than what is served."""
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    oldest = tuple(int(part) for part in OLDEST_VERSION.split(".")[:2])
    if (major, minor) < oldest:
        raise UnsupportedVersionError(
            f"Transformers {transformers.__version__} is installed, and gradellm_hf runs with {OLDEST_VERSION} or newer: "
            f'pip install "transformers>={OLDEST_VERSION}"'
        )


def cache_argument(parameters: frozenset[str]) -> str:
    """The name under which a model takes its cache; the newest one if it takes none.

    Args:
        parameters: The names of what its `forward` takes.
    """
    return next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[0])


def cache_of(named: Any) -> Any:
    """The cache among the arguments of a call, or in what a model or `generate` returned; None if there is none."""
    values = dict(named) if isinstance(named, Mapping) else getattr(named, "__dict__", {})
    return next((values[name] for name in CACHE_NAMES if values.get(name) is not None), None)


def cache_named_as_by_generate(output: Output) -> Output:
    """A decorator, under `dataclass`, of an output with a field `cache`.

    Before 5.24 the field is called `past_key_values`, as in what `generate` returns there; `cache` is another name for it.
    """
    if not hasattr(ModelOutput, "past_key_values"):  # today's answers to the former name
        fields = output.__annotations__
        output.__annotations__ = {name.replace("cache", "past_key_values"): kind for name, kind in fields.items()}
        output.past_key_values = None  # type: ignore[assignment]
        output.cache = property(lambda self: self.past_key_values)
    return output


def num_keys(layer: Any, num_positions: int) -> int:
    """How many keys a layer of a cache will have for a call with `num_positions` more positions."""
    by_position = "cache_position" in inspect.signature(layer.get_mask_sizes).parameters
    sizes: tuple[int, int] = layer.get_mask_sizes(torch.arange(num_positions) if by_position else num_positions)
    return sizes[0]


def heeded_keywords(function: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """The further arguments of an attention call that have an effect: sdpa, until 5.22, passes over soft-capping.

    Args:
        function: The model's own attention function; as it comes to a handler.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if getattr(function, "function", function) is not sdpa_attention_forward:
        return keywords
    return {name: value for name, value in keywords.items() if name != "softcap"}  # which newer versions refuse


def quantized_layer_type() -> type:
    """What all layers of quantised caches are."""
    from transformers import cache_utils

    return getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)


@functools.cache
def prompt_only_arguments() -> frozenset[str]:
    """Arguments of a model that belong to a prompt's images, videos and sounds: `generate` passes them on with it only.

    Before 5.17 there was no list of them, as each model dropped its own; all of them that it would hold are tensors.
    """
    from transformers.generation import utils

    return frozenset(getattr(utils, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ()))


def eager_namespaces(model: nn.Module) -> Iterator[dict[str, Any]]:
    """The global names among which a model may find its eager attention function: of each file that its modules stem from."""
    classes = {type(module) for module in model.modules()}
    spaces = (getattr(inspect.unwrap(kind.forward), "__globals__", {}) for kind in classes)
    yield from {id(space): space for space in spaces if any(map(is_eager_function, space))}.values()


def is_eager_function(name: str) -> bool:
    """Whether a file of a model calls its eager attention function so."""
    return name.endswith("eager_attention_forward")
