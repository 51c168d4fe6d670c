"""A model that a pipeline of Transformers may call, and that explains what it writes."""

from typing import Any

from transformers.generation.utils import GenerateBeamDecoderOnlyOutput
from transformers.utils import ModelOutput

from ..architecture.facts import look_at
from ..configuration import GradELLMConfig
from ..generation import explain_generate
from ..results.output import ExplainGenerateOutput
from ..sequences.generate_call import GenerateCall
from ..sequences.steps import Steps


class ExplainingModel:
    """A model whose `generate` returns what it always returned, and keeps the explained output."""

    def __init__(self, model: Any, explain_config: GradELLMConfig | None, steps: Steps | None):
        self._model, self._explain_config, self._steps = model, explain_config, steps
        self.output: ExplainGenerateOutput

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, **kwargs: Any) -> Any:
        out = explain_generate(self._model, explain_config=self._explain_config, steps=self._steps, **kwargs)
        self.output = out
        if not GenerateCall(look_at(self._model), None, kwargs).returns_dict:
            return out.sequences
        names = GenerateBeamDecoderOnlyOutput.__dataclass_fields__  # a superset of what other strategies return
        return ModelOutput({name: out[name] for name in names if out.get(name) is not None})
