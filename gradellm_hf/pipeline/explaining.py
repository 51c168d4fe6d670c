"""What the explained pipelines share: their options, and a model that explains what it writes."""

import copy
from typing import Any

from transformers.generation.utils import GenerateBeamDecoderOnlyOutput
from transformers.utils import ModelOutput

from ..architecture.facts import look_at
from ..configuration import GradELLMConfig
from ..generation import explain_generate
from ..results.output import ExplainGenerateOutput
from ..sequences.generate_call import GenerateCall
from ..sequences.steps import Steps


class ExplainedPipeline:
    """The part of a pipeline that comes before Transformers' own class."""

    def _sanitize_parameters(
        self, *args: Any, explain_config: GradELLMConfig | None = None, steps: Steps | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        inherited: Any = super()
        preprocess_params, forward_params, postprocess_params = inherited._sanitize_parameters(*args, **kwargs)
        given = {"explain_config": explain_config, "steps": steps}
        forward_params.update({name: value for name, value in given.items() if value is not None})
        return preprocess_params, forward_params, postprocess_params

    def _explained_forward(
        self, explain_config: GradELLMConfig | None, steps: Steps | None, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], ExplainGenerateOutput]:
        """What Transformers' `_forward` returns, and the explained output behind it."""
        explaining: Any = copy.copy(self)  # this pipeline keeps its model: other threads may be using it
        explaining.model = ExplainingModel(explaining.model, explain_config, steps)
        inherited: Any = super(ExplainedPipeline, explaining)
        return inherited._forward(*args, **kwargs), explaining.model.output


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
