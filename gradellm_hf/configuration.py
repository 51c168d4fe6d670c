"""What to explain and how: `GradELLMConfig`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch

from .checks.arguments import choice, is_index, is_list, numbers, true_or_false, whole_number
from .checks.schema import TokenId, check, known_fields, parse_json
from .errors import InvalidInputError

Spatial = Literal["attention", "loosened"]
Channel = Literal["heads", "attention_output"]
Target = Literal["logit", "probability", "log_probability", "contrast"]
PositivePart = Literal["layer", "head"]
Engine = Literal["replay", "stepwise"]
_Foils = TokenId | list[TokenId] | list[list[TokenId]]  # in a file
TargetFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GradELLMConfig:
    """Configuration of a Grad-ELLM explanation (arXiv 2601.03089). The defaults are the method's equations, head by head.

    Args:
        layers: `"all"`, an int (that many last layers), or a list of layer indices (negative ones count from the end).
            Layers are the model's softmax-attention layers in the order in which a forward pass calls them.
        spatial: Spatial importance of a key: `"attention"`, its attention weight, or `"loosened"`, the cosine between
            query and key, min-max scaled over the visible keys.
        channel: Where the gradient is taken: `"heads"`, at the head outputs before the output projection, or
            `"attention_output"`, at the output of the attention module. The latter works on the raw outputs of the
            query, key and value projections, flattened over heads.
        target: The scalar that is explained: `"logit"`, `"probability"` or `"log_probability"` of the chosen token,
            `"contrast"` (its logit minus that of a foil), or a callable `(logits [R, N, V], token_ids [R, N]) -> [R, N]`
            whose value at step `n` may depend on `logits[:, n]` only. It is called with chunks of consecutive steps.
        contrast_token_ids: The foils of `target="contrast"`: one id, or ids that broadcast to `[R, N]`. At an explained step
            the foil must differ from the chosen token.
        positive_only: Keep only positive parts (the relu of the paper).
        engine: `"replay"` (every step in one pass) or `"stepwise"` (one token at a time; the reference).
        output_layer_attributions: Also return the heatmap of each layer.
        step_chunk_size: Number of steps replayed together; `None` chooses it so that memory stays bounded.
        positive_part: What `positive_only` keeps the positive part of: `"layer"`, each layer's heatmap, in which its heads are
            added up first, or `"head"`, what each head contributes to it.

    Raises:
        InvalidInputError: An option is unknown, or two options exclude each other.
    """

    layers: str | int | Sequence[int] = "all"
    spatial: Spatial = "attention"
    channel: Channel = "heads"
    target: Target | TargetFunction = "logit"
    contrast_token_ids: Any = None
    positive_only: bool = True
    engine: Engine = "replay"
    output_layer_attributions: bool = False
    step_chunk_size: int | None = None
    positive_part: PositivePart = "layer"

    def __post_init__(self) -> None:
        self._check_layers()
        choice("spatial", self.spatial, get_args(Spatial))
        choice("channel", self.channel, get_args(Channel))
        choice("positive_part", self.positive_part, get_args(PositivePart))
        choice("engine", self.engine, get_args(Engine))
        if not callable(self.target):
            choice("target", self.target, get_args(Target), "a callable (logits, token_ids) -> scores")
        for name in ("positive_only", "output_layer_attributions"):
            true_or_false(name, getattr(self, name))
        if self.step_chunk_size is not None:
            object.__setattr__(
                self, "step_chunk_size", whole_number("step_chunk_size", self.step_chunk_size, 1, none="automatic")
            )
        self._check_contrast()
        if self.positive_part == "head" and (not self.positive_only or self.channel != "heads"):
            raise InvalidInputError(
                '`positive_part="head"` keeps the positive part of each head, so it needs `positive_only=True` and '
                f'`channel="heads"`. Got positive_only={self.positive_only} and channel={self.channel!r}.'
            )

    @classmethod
    def paper(cls, **overrides: Any) -> "GradELLMConfig":
        """The published implementation: last layer, gradient at the attention output, flattened cosines before RoPE."""
        return cls(**{"layers": 1, "spatial": "loosened", "channel": "attention_output", **overrides})

    def layer_indices(self, num_layers: int) -> list[int]:
        """The explained layers of a model with `num_layers` attention layers, ascending.

        Raises:
            InvalidInputError: A layer is out of range, or `num_layers` is no number of layers.
        """
        num_layers = whole_number("num_layers", num_layers, 0)
        if self.layers == "all":
            return list(range(num_layers))
        if isinstance(self.layers, int):
            if self.layers > num_layers:
                raise InvalidInputError(
                    f"`layers={self.layers}` asks for the last {self.layers} layers, but the model has {num_layers} "
                    f'attention layers. Use a number from 1 to {num_layers}, or "all".'
                )
            return list(range(num_layers - self.layers, num_layers))
        indices = [int(i) for i in self.layers]
        out_of_range = [i for i in indices if not -num_layers <= i < num_layers]
        if out_of_range:
            raise InvalidInputError(
                f"`layers={indices}` contains {out_of_range}, but the model has {num_layers} attention layers. "
                f"Use indices from {-num_layers} to {num_layers - 1}."
            )
        return sorted({i % num_layers for i in indices})

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-ready values. A callable target is written as its qualified name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if callable(self.target):
            values["target"] = f"callable:{getattr(self.target, '__qualname__', type(self.target).__qualname__)}"
        if self.contrast_token_ids is not None:
            values["contrast_token_ids"] = torch.as_tensor(self.contrast_token_ids).tolist()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GradELLMConfig":
        """The inverse of `to_dict`.

        Raises:
            InvalidInputError: An option is unknown, or the target was a callable, which JSON cannot hold.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"The options of GradELLMConfig are a dict by name, got {values!r}.")
        if unknown := sorted(set(values) - names):
            raise InvalidInputError(f"Unknown options {unknown} of GradELLMConfig; the known ones are {sorted(names)}.")
        target = values.get("target")
        if isinstance(target, str) and target.startswith("callable:"):
            raise InvalidInputError(
                f"The target of this configuration was the function `{target.removeprefix('callable:')}`, which JSON "
                "cannot hold. Build a GradELLMConfig with `target=` set to that function."
            )
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "GradELLMConfig":
        """The inverse of `to_json`. Errors as for `from_dict`; InvalidInputError, too, where it is no JSON object."""
        name = "The text of a GradELLMConfig"
        values = parse_json(text, name)
        check(values, dict[str, Any], name)
        return cls.from_dict(values)

    def _check_layers(self) -> None:
        layers: Any = self.layers
        if isinstance(layers, str):
            valid = layers == "all"
        elif is_index(layers):
            valid = layers >= 1
            object.__setattr__(self, "layers", int(layers))
        else:
            valid = is_list(layers) and len(layers) > 0 and all(map(is_index, layers))
            if valid:
                object.__setattr__(self, "layers", [int(i) for i in layers])
        if not valid:
            raise InvalidInputError(
                f'`layers` must be "all", an int of at least 1 (that many last layers) or a non-empty list of layer '
                f"indices, got {layers!r}."
            )

    def _check_contrast(self) -> None:
        if (self.target == "contrast") != (self.contrast_token_ids is not None):
            raise InvalidInputError(
                '`target="contrast"` and `contrast_token_ids` belong together: the foil\'s token id for each step, '
                f"broadcastable to [R, N]. Got target={self.target!r} and contrast_token_ids={self.contrast_token_ids!r}."
            )
        if self.contrast_token_ids is not None:
            foil_ids(self.contrast_token_ids)


def checked_config(config: Any) -> GradELLMConfig | None:
    """What was given as `explain_config`; raises InvalidInputError unless it is a GradELLMConfig, or None."""
    if config is not None and not isinstance(config, GradELLMConfig):
        raise InvalidInputError(
            f"`explain_config` must be a GradELLMConfig, got {type(config).__name__}. It says what to explain and how; the "
            "model's own configuration comes with the model."
        )
    return config


def stored_config(values: dict[str, Any] | None) -> GradELLMConfig | None:
    """The configuration in a file that `to_dict` went into; None for a callable target, which a file cannot hold.

    Options that this release does not know, of a later one, are left out.

    Raises:
        InvalidInputError: An option is not usable.
    """
    if values is None or str(values.get("target")).startswith("callable:"):
        return None
    config = GradELLMConfig.from_dict(known_fields(values, GradELLMConfig))
    if config.contrast_token_ids is not None:
        check(values["contrast_token_ids"], _Foils, "`contrast_token_ids`")
    return config


def foil_ids(foils: Any) -> torch.Tensor:
    """Token ids given as `contrast_token_ids`; raises InvalidInputError where they are none."""
    expected = "token ids: a whole number of at least 0, or an array of them"
    ids = numbers("contrast_token_ids", foils, expected)
    if ids.numel() and (ids.dtype == torch.bool or ids.is_floating_point() or bool(ids.min() < 0)):
        raise InvalidInputError(
            f"`contrast_token_ids` must be {expected}; got {ids.dtype} values from {ids.flatten()[0].item()} on."
        )
    return ids.long()
