"""What is known of a model during a call: `ModelFacts`, made once at its beginning and handed down."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..configuration import GradELLMConfig
from ..errors import UnsupportedArchitectureError
from .compat import cache_argument, check_version
from .identity import Findings, Layout, look_again
from .layout import find_layout
from .quantization import is_quantized
from .reading import forward_parameters, input_device, placeholder_ids, position_limit, vocabulary_size
from .support import check_model, unwrap
from .tensor_parallel import sharing_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """What is known of a model during one call. Each fact is found when it is first asked for, and then stays.

    Made by `look_at`, and gone with the call: it keeps the model alive.

    Attributes:
        model: The Transformers model, without wrappers.
        findings: What earlier calls have found out about the model as it is now.
        parameters: The names of what its `forward` takes.
    """

    model: "PreTrainedModel"
    findings: Findings
    parameters: frozenset[str]

    @property
    def model_type(self) -> str:
        """What error messages call the model."""
        return str(getattr(self.model.config, "model_type", type(self.model).__name__))

    @cached_property
    def _layout(self) -> Layout:
        return find_layout(self.model)

    @cached_property
    def attention(self) -> list[nn.Module]:
        """The attention modules in the order in which a forward pass runs them. One that runs twice is in it twice.

        Raises:
            UnsupportedArchitectureError: None are found, or they cannot be explained.
        """
        return [module for reference in self._layout.modules if (module := reference()) is not None]

    @cached_property
    def layer_names(self) -> list[str]:
        """The name of each attention module in the model."""
        names = {id(module): name for name, module in self.model.named_modules()}
        return [names[id(module)] for module in self.attention]

    @property
    def calls_interface(self) -> bool:
        """Whether the model looks up its attention function in Transformers' AttentionInterface."""
        return self._layout.calls_interface

    @property
    def keeps_cache(self) -> bool:
        """Whether the model hands a cache of keys and values from call to call."""
        return self._layout.keeps_cache

    @cached_property
    def cache_argument(self) -> str:
        """The name under which the model takes its cache."""
        return cache_argument(self.parameters)

    @cached_property
    def num_heads(self) -> int:
        """Number of query heads of a layer, by the configuration; of the layer with most if they differ."""
        heads = self.model.config.get_text_config(decoder=True).num_attention_heads
        return int(max(heads) if isinstance(heads, list | tuple) else heads)

    @cached_property
    def vocabulary_size(self) -> int:
        """Number of token ids that the model can read."""
        return vocabulary_size(self.model)

    @cached_property
    def input_device(self) -> torch.device:
        """The device on which the model reads token ids."""
        return input_device(self.model)

    @cached_property
    def position_limit(self) -> int | None:
        """Number of positions in the model's table of them, learned or fixed; None if it computes any position."""
        return position_limit(self.model)

    @cached_property
    def placeholder_ids(self) -> dict[str, list[int]]:
        """By modality, the tokens that stand for a part of an image, a video or a sound; those that the model reads."""
        return placeholder_ids(self.model)

    @cached_property
    def is_quantized(self) -> bool:
        """Whether the model's logits may depend, by more than rounding, on how many tokens are run at once."""
        return is_quantized(self.model)

    @cached_property
    def sharing_groups(self) -> list[Any]:
        """The process groups whose processes run the model together."""
        return sharing_groups(self.model)


def look_at(model: Any) -> ModelFacts:
    """The facts of a model, at the beginning of a call. What was found out before is forgotten if the model has changed.

    Args:
        model: As for `explain_generate`; wrappers are taken off.

    Raises:
        UnsupportedVersionError: Transformers is too old.
        InvalidInputError: It is no model, in training mode, or its weights were created in inference mode.
        UnsupportedArchitectureError: It cannot be explained exactly.
    """
    check_version()
    inner = unwrap(model)
    check_model(inner)
    return ModelFacts(inner, look_again(inner), forward_parameters(inner))


def explained_layers(facts: ModelFacts, config: GradELLMConfig) -> list[int]:
    """The explained layers, ascending. Checks first that the model can be explained with this configuration.

    Raises:
        InvalidInputError: There are no such layers, or the head weights are of a model of another shape.
        UnsupportedArchitectureError: The model has no attention layers, or cannot be explained with these options.
    """
    if not facts.calls_interface and (config.channel, config.spatial) != ("heads", "attention"):
        raise UnsupportedArchitectureError(
            f"`{facts.model_type}` does not call Transformers' AttentionInterface, so its queries and keys cannot be "
            'seen. Use `spatial="attention"` and `channel="heads"`.'
        )
    if config.channel == "attention_output":
        _check_flattened_width(facts.model)
    if config.head_weights is not None:
        config.head_weights.check_model(facts.model_type, len(facts.attention), facts.num_heads)
    return config.layer_indices(len(facts.attention))


def _check_flattened_width(model: "PreTrainedModel") -> None:
    """Checks the widths in the config, before any text is written. Those of the projections are checked when they run."""
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
