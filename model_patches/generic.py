"""For families without a file of their own: finds the parts by the names that most families use."""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from .adapter import ArchitectureAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "output_projection")


@dataclass(frozen=True)
class GenericAdapter(ArchitectureAdapter):
    """Decoder layers: the first list with as many modules as the config has layers. Attention: the module of that name."""

    def layers(self, model: "PreTrainedModel") -> list[nn.Module]:
        count = model.config.get_text_config(decoder=True).num_hidden_layers
        decoder = model.get_decoder()
        for module in itertools.chain(decoder.modules(), model.modules()):  # other parts, such as vision, come later
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return list(module)
        raise AttributeError(f"{type(model).__name__} has no list of {count} decoder layers. {self._advice}")

    def attention_modules(self, model: "PreTrainedModel") -> list[nn.Module]:
        found = []
        for layer in self.layers(model):
            candidates = [m for m in layer.modules() if "attention" in type(m).__name__.lower()]
            found += [m for m in candidates if any(hasattr(m, name) for name in _OUTPUT_PROJECTIONS)][:1]
        if not found:
            raise AttributeError(
                f"{type(model).__name__} has no modules named attention with an output projection ("
                f"{', '.join(_OUTPUT_PROJECTIONS)}) in its decoder layers. {self._advice}"
            )
        return found

    def output_projection_of(self, attention: nn.Module) -> nn.Module:
        for name in _OUTPUT_PROJECTIONS:
            if hasattr(attention, name):
                return attention.get_submodule(name)
        return super().output_projection_of(attention)


GENERIC = GenericAdapter(model_types=())
