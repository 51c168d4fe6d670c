"""What to explain and how: `GradELLMConfig`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch

from ..checks.arguments import choice, is_index, is_list, numbers, true_or_false, whole_number
from ..checks.schema import TokenId, check, known_fields, parse_json
from ..errors import InvalidInputError
from .head_weights import HeadWeights, head_weights

Spatial = Literal["attention", "loosened"]
Channel = Literal["heads", "attention_output"]
Target = Literal["logit", "probability", "log_probability", "contrast"]
PositivePart = Literal["layer", "head"]
Engine = Literal["replay", "stepwise"]
_Foils = TokenId | list[TokenId] | list[list[TokenId]]  # in a file
TargetFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GradELLMConfig:
    """What to explain and how. The defaults are the equations of Grad-ELLM (arXiv 2601.03089), read head by head.

    Args:
        layers: The explained layers. `"all"`; an int, for that many last layers; or a list of indices, of which negative ones
            count from the end. Only layers with softmax attention count, in the order in which a forward pass calls them.
        spatial: The spatial importance of a key. `"attention"`: its attention weight. `"loosened"`: the cosine between query
            and key, min-max scaled over the keys that the query sees.
        channel: Where the gradient is taken. `"heads"`: at the head outputs, before the output projection.
            `"attention_output"`: at the output of the attention module; queries, keys and values are then the raw outputs
            of their projections, flattened over heads.
        target: The scalar `f_n` that is explained. `"logit"`, `"probability"` or `"log_probability"`: that of the chosen
            token. `"contrast"`: its logit minus the logit of another token, the foil. Or a function
            `(logits [R, N, V], token_ids [R, N]) -> [R, N]`. Its value at step `n` may depend on `logits[:, n]` only. It is
            called with chunks of consecutive steps.
        contrast_token_ids: The foils of `target="contrast"`: one token id, or ids that broadcast to `[R, N]`. At an explained
            step the foil must differ from the chosen token.
        positive_only: Keep only positive parts (the relu of the paper).
        engine: `"replay"` explains every step in one pass. `"stepwise"` explains one token at a time; it is slow, and the
            reference.
        output_layer_attributions: Also return the heatmap of each layer.
        step_chunk_size: Number of steps that are replayed together. None: as many as fit into the free memory.
        positive_part: What `positive_only` is applied to. `"head"`: the contribution of each head, before they are added up.
            `"layer"`: each layer's heatmap, after its heads are added up; always so with `channel="attention_output"`, where
            there are no heads.
        head_weights: How much each head counts: `HeadWeights`, or what `HeadWeights.load` takes. None: all alike. They need
            `channel="heads"` and `spatial="attention"`.

    Raises:
        InvalidInputError: An option is unknown, or two options exclude each other.
        FileNotFoundError: There is no such file of head weights.

    Examples:
        >>> config = GradELLMConfig(layers=2, target="log_probability")  # the last two layers
        >>> out = explain_generate(model, **inputs, explain_config=config, max_new_tokens=4)
        >>> out.layers
        [3, 4]
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
    positive_part: PositivePart = "head"
    head_weights: Any = None

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
        if self.channel == "attention_output":
            object.__setattr__(self, "positive_part", "layer")
        object.__setattr__(self, "head_weights", head_weights(self.head_weights))
        if self.head_weights is not None and (self.channel, self.spatial) != ("heads", "attention"):
            raise InvalidInputError(
                '`head_weights` weight what heads read by attention, so they need `channel="heads"` and '
                f'`spatial="attention"`. Got channel={self.channel!r} and spatial={self.spatial!r}.'
            )

    @classmethod
    def paper(cls, **overrides: Any) -> "GradELLMConfig":
        """The published implementation: last layer, gradient at the attention output, flattened cosines before RoPE.

        Args:
            **overrides: Options of `GradELLMConfig` that differ from it.

        Raises:
            InvalidInputError: An option is unknown, or two options exclude each other.

        Examples:
            >>> GradELLMConfig.paper(layers=2).channel
            'attention_output'
        """
        return cls(**{"layers": 1, "spatial": "loosened", "channel": "attention_output", **overrides})

    def layer_indices(self, num_layers: int) -> list[int]:
        """The explained layers of a model with `num_layers` attention layers, ascending.

        Raises:
            InvalidInputError: A layer is out of range, or `num_layers` is no number of layers.

        Examples:
            >>> GradELLMConfig(layers=[0, -1]).layer_indices(12)
            [0, 11]
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
        """The options as JSON-ready values. A callable target is written as its qualified name.

        Examples:
            >>> GradELLMConfig(layers=4).to_dict()["layers"]
            4
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if callable(self.target):
            values["target"] = f"callable:{getattr(self.target, '__qualname__', type(self.target).__qualname__)}"
        if self.contrast_token_ids is not None:
            values["contrast_token_ids"] = torch.as_tensor(self.contrast_token_ids).tolist()
        if isinstance(self.head_weights, HeadWeights):
            values["head_weights"] = self.head_weights.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GradELLMConfig":
        """The inverse of `to_dict`.

        Args:
            values: Options by name.

        Raises:
            InvalidInputError: An option is unknown, or the target was a callable, which JSON cannot hold.

        Examples:
            >>> GradELLMConfig.from_dict({"layers": 4}) == GradELLMConfig(layers=4)
            True
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
        """The options as the text of a JSON object.

        Examples:
            >>> print(GradELLMConfig(layers=4).to_json())
            {"layers": 4, "spatial": "attention", ...}
        """
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "GradELLMConfig":
        """The inverse of `to_json`.

        Raises:
            InvalidInputError: As for `from_dict`, or the text is no JSON object.

        Examples:
            >>> GradELLMConfig.from_json('{"layers": 4}') == GradELLMConfig(layers=4)
            True
        """
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
    """The configuration in a file, from what `to_dict` wrote; None if the target was a callable, which a file cannot hold.

    Options of a later release that this one does not know are left out. The first release wrote no `positive_part` and had the
    one of layers.

    Raises:
        InvalidInputError: An option is not usable.
    """
    if values is None or str(values.get("target")).startswith("callable:"):
        return None
    config = GradELLMConfig.from_dict({"positive_part": "layer", **known_fields(values, GradELLMConfig)})
    if config.contrast_token_ids is not None:
        check(values["contrast_token_ids"], _Foils, "`contrast_token_ids`")
    return config


def foil_ids(foils: Any) -> torch.Tensor:
    """What was given as `contrast_token_ids`, as a tensor; raises InvalidInputError if it holds no token ids."""
    expected = "token ids: a whole number of at least 0, or an array of them"
    ids = numbers("contrast_token_ids", foils, expected)
    if ids.numel() and (ids.dtype == torch.bool or ids.is_floating_point() or bool(ids.min() < 0)):
        raise InvalidInputError(
            f"`contrast_token_ids` must be {expected}; got {ids.dtype} values from {ids.flatten()[0].item()} on."
        )
    return ids.long()
