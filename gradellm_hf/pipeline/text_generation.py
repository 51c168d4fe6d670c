"""`ExplainedTextGenerationPipeline`: Transformers' text generation pipeline, with an explanation in each result."""

from typing import Any

from transformers import TextGenerationPipeline
from transformers.utils.chat_template_utils import Chat

from ..configuration import GradELLMConfig
from ..results.chats import encoded_prompts, with_segments
from ..sequences.steps import Steps
from ..text.chats import check_chat
from ..text.encoding import TEMPLATE_OPTIONS
from .explaining import ExplainedPipeline


class ExplainedTextGenerationPipeline(ExplainedPipeline, TextGenerationPipeline):
    """A `TextGenerationPipeline` that adds an `Explanation` to each result, under the name `"explanation"`.

    It takes what that pipeline takes, and everything else in its results is the same. `explain_config=GradELLMConfig(...)`
    says what to explain and how, and `steps=slice(-16, None)` which of the generated tokens. They may be given when the
    pipeline is made or when it is called. Explanations of chats know their messages, as those of `GradELLM.explain` do.

    Raises:
        UnsupportedArchitectureError: The model cannot be explained exactly.
        InvalidInputError: An argument or the state of the model is not usable, or a chat holds something else than text.

    Examples:
        >>> generator = ExplainedTextGenerationPipeline(model=model, tokenizer=tokenizer)
        >>> result = generator("The capital of Italy is", max_new_tokens=4)[0]
        >>> result["generated_text"]
        'The capital of Italy is...'
        >>> result["explanation"].attributions.shape  # [N, S]
        torch.Size([4, 9])
    """

    def preprocess(self, prompt_text: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # as the class above it
        asked = None
        if isinstance(prompt_text, Chat):
            messages: Any = prompt_text.messages
            check_chat(messages)
            given = {**kwargs, **(kwargs.get("tokenizer_encode_kwargs") or {})}
            options = {name: given[name] for name in TEMPLATE_OPTIONS if given.get(name) is not None}
            (asked,) = encoded_prompts(self.tokenizer, [messages], options)
        inputs: Any = super().preprocess(prompt_text, *args, **kwargs)
        inputs["asked"] = asked
        return inputs

    def _forward(  # type: ignore[override]  # as the class above it
        self,
        model_inputs: Any,
        *,
        explain_config: GradELLMConfig | None = None,
        steps: Steps | None = None,
        **generate_kwargs: Any,
    ) -> dict[str, Any]:
        asked = model_inputs.pop("asked")
        model_outputs, out = self._explained_forward(explain_config, steps, model_inputs, **generate_kwargs)
        prompts, returned = model_outputs["generated_sequence"].shape[:2]
        chats = asked if isinstance(asked, list) else [asked]  # of a batch, or of a single prompt; None: a text
        rows = [
            row if (chat := chats[i // returned]) is None else with_segments(row, self.tokenizer, chat)
            for i, row in enumerate(out.explanations(self.tokenizer))
        ]
        model_outputs["explanations"] = [rows[i * returned : (i + 1) * returned] for i in range(prompts)]
        return model_outputs

    def postprocess(self, model_outputs: dict[str, Any], *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        explanations = model_outputs.pop("explanations")
        if isinstance(explanations[0], list):  # not taken out of a batch
            explanations = explanations[0]
        records = super().postprocess(model_outputs, *args, **kwargs)
        return [{**record, "explanation": explanation} for record, explanation in zip(records, explanations, strict=True)]
