"""`ArchitectureAdapter`: the names of the parts that an explanation looks at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Split = Callable[[Tensor, nn.Module], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class ArchitectureAdapter:
    """Names the parts of a decoder-only architecture.

    Attributes:
        model_types: The `config.model_type`s it describes.
        decoder_layers: Dotted path from the model with the language-modelling head to its list of decoder layers.
        attention: Dotted path from a decoder layer to its attention module.
        output_projection: Name of the output projection in the attention module.
        query, key, value: Names of the separate projections in the attention module; None if no module puts them out.
        fused: Name of the projection that computes query, key and value at once, if there is one.
        split_fused: `(its output, attention module) -> (query, key, value)`, each flattened over heads, `[R, N, C]`.

    Raises:
        ValueError: Only one of `fused` and `split_fused` is given.

    Examples:
        >>> adapter = ArchitectureAdapter(model_types=("my_llama",), attention="attn", output_projection="out_proj")
        >>> register_adapter(adapter)  # explanations use it for models with `config.model_type == "my_llama"`
    """

    _advice: ClassVar[str] = "Register an ArchitectureAdapter that names the parts of this architecture."

    model_types: tuple[str, ...]
    decoder_layers: str = "model.layers"
    attention: str = "self_attn"
    output_projection: str = "o_proj"
    query: str | None = "q_proj"
    key: str | None = "k_proj"
    value: str | None = "v_proj"
    fused: str | None = None
    split_fused: Split | None = None

    def __post_init__(self) -> None:
        if (self.fused is None) != (self.split_fused is None):
            raise ValueError(
                f"`fused` and `split_fused` belong together, got fused={self.fused!r} and split_fused={self.split_fused!r} "
                f"in the adapter for {self.model_types}."
            )

    def layers(self, model: "PreTrainedModel") -> list[nn.Module]:
        """The decoder layers, in order.

        Args:
            model: The model with the language-modelling head.

        Raises:
            AttributeError: There are none at the path `decoder_layers`.

        Examples:
            >>> len(ArchitectureAdapter(model_types=("llama",)).layers(model))
            5
        """
        return list(_resolve(model, self.decoder_layers))

    def attention_modules(self, model: "PreTrainedModel") -> list[nn.Module]:
        """The attention module of each decoder layer, in order.

        Args:
            model: The model with the language-modelling head.

        Raises:
            AttributeError: There are no layers, or a layer has no module at the path `attention`.

        Examples:
            >>> type(ArchitectureAdapter(model_types=("llama",)).attention_modules(model)[0]).__name__
            'LlamaAttention'
        """
        return [_resolve(layer, self.attention) for layer in self.layers(model)]

    def output_projection_of(self, attention: nn.Module) -> nn.Module:
        """The output projection of an attention module.

        Raises:
            AttributeError: The attention module has none of the name `output_projection`.

        Examples:
            >>> adapter = ArchitectureAdapter(model_types=("llama",))
            >>> adapter.output_projection_of(adapter.attention_modules(model)[0])
            Linear(in_features=60, out_features=48, bias=False)
        """
        projection: nn.Module = _resolve(attention, self.output_projection)
        return projection

    def projections(self, attention: nn.Module) -> list[tuple[nn.Module, Callable[[Tensor], dict[str, Tensor]]]]:
        """The modules that compute query, key and value.

        Returns:
            Each module with a function from its output, `[R, N, C]`, to the tensors in it by name: `"query"`, `"key"` and
            `"value"`, each flattened over heads.

        Raises:
            AttributeError: The attention module has no such part.

        Examples:
            >>> adapter = ArchitectureAdapter(model_types=("llama",))
            >>> [module.out_features for module, _ in adapter.projections(adapter.attention_modules(model)[0])]
            [60, 30, 30]
        """
        if self.fused is not None and self.split_fused is not None:
            split = self.split_fused
            return [
                (
                    _resolve(attention, self.fused),
                    lambda output: dict(zip(("query", "key", "value"), split(output, attention), strict=True)),
                )
            ]

        def named(name: str) -> Callable[[Tensor], dict[str, Tensor]]:
            return lambda output: {name: output}

        paths = {"query": self.query, "key": self.key, "value": self.value}
        if missing := [name for name, path in paths.items() if path is None]:
            raise AttributeError(f"In {type(attention).__name__} no module puts out the {', '.join(missing)} of the heads.")
        return [(_resolve(attention, path), named(name)) for name, path in paths.items() if path is not None]


def _resolve(module: Any, path: str) -> Any:
    names = path.split(".")
    for i, name in enumerate(names):
        if getattr(module, name, None) is None:  # a part that is declared may be None in some layers
            looked_for = f" (looked for `{path}`, got as far as `{'.'.join(names[:i])}`)" if i else ""
            raise AttributeError(f"{type(module).__name__} has no `{name}`{looked_for}. {ArchitectureAdapter._advice}")
        module = getattr(module, name)
    return module
