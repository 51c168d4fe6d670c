"""`ExplainedImageTextToTextPipeline`: Transformers' pipeline for pictures and text, with an explanation in each result."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import ImageTextToTextPipeline
from transformers.utils.chat_template_utils import Chat

from ..checks.arguments import is_list
from ..configuration import GradELLMConfig
from ..images.pictures import pictures_of
from ..images.prompt import PromptImages
from ..results.chats import EncodedPrompt, image_positions, with_prompt
from ..sequences.steps import Steps
from ..text.encoding import TEMPLATE_OPTIONS, rendered, template_writer
from .explaining import ExplainedPipeline


class ExplainedImageTextToTextPipeline(ExplainedPipeline, ImageTextToTextPipeline):
    """An `ImageTextToTextPipeline` that adds an `Explanation` to each result, under the name `"explanation"`.

    It takes what that pipeline takes, and everything else in its results is the same. `explain_config=GradELLMConfig(...)`
    says what to explain and how, and `steps=slice(-16, None)` which of the generated tokens. They may be given when the
    pipeline is made or when it is called. Explanations know the images of their prompts, as those of `GradELLM.explain` do:
    `explanation.image_heatmap()` has the heatmap of a picture.

    Raises:
        UnsupportedArchitectureError: The model cannot be explained exactly.
        InvalidInputError: An argument or the state of the model is not usable, or a chat holds something else than text and
            images.

    Examples:
        >>> from transformers import ImageTextToTextPipeline
        >>> issubclass(ExplainedImageTextToTextPipeline, ImageTextToTextPipeline)
        True
    """

    def preprocess(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # as the class above it
        given = {**kwargs, **(kwargs.get("processor_kwargs") or {})}
        if isinstance(inputs, Chat):  # refused before anything is read
            options = {name: given[name] for name in TEMPLATE_OPTIONS if given.get(name) is not None}
            messages: Any = inputs.messages
            text = rendered(template_writer(self.processor), messages, options, images=True)
            prompts: list[Any] = [(messages, options, text, pictures_of(messages, ()))]
        else:
            images, texts = (inputs["images"], inputs["text"]) if isinstance(inputs, Mapping) else (None, inputs)
            each = texts if is_list(texts) else [texts]
            beside = _pictures_of_each(images, len(each))
            prompts = [(text, {}, text, pictures_of(text, own)) for text, own in zip(each, beside)]
        model_inputs: Any = super().preprocess(inputs, *args, **kwargs)
        tensors = {name: value for name, value in model_inputs.items() if isinstance(value, Tensor)}
        asked, first = [], 0
        for row, (prompt, options, text, pictures) in enumerate(prompts):
            own = PromptImages(tuple(pictures), tensors, given, self.processor, first) if pictures else None
            ids = model_inputs["input_ids"][row][model_inputs["attention_mask"][row].bool()].tolist()
            asked.append(EncodedPrompt(prompt, options, (text, isinstance(prompt, str), ids), images=own))
            first += len(pictures)
        model_inputs["asked"] = asked
        return model_inputs

    def _forward(  # type: ignore[override]  # as the class above it
        self,
        model_inputs: Any,
        generate_kwargs: Any = None,
        *,
        explain_config: GradELLMConfig | None = None,
        steps: Steps | None = None,
    ) -> dict[str, Any]:
        asked = model_inputs.pop("asked")
        is_batch = isinstance(asked[0], list)
        prompts: list[EncodedPrompt] = [prompt for each in asked for prompt in each] if is_batch else asked
        model_outputs, out = self._explained_forward(explain_config, steps, model_inputs, generate_kwargs)
        found = out.explanations(self.tokenizer)
        each = len(found) // len(prompts)
        writer = template_writer(self.processor)
        rows = [with_prompt(row, writer, prompts[i // each], image_positions(out, i)) for i, row in enumerate(found)]
        model_outputs["explanations"] = [rows[i : i + each] for i in range(0, len(rows), each)] if is_batch else rows
        return model_outputs

    def postprocess(self, model_outputs: dict[str, Any], *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        explanations = model_outputs.pop("explanations")
        records = super().postprocess(model_outputs, *args, **kwargs)
        # Of several sequences per prompt, the first versions of Transformers return one.
        return [{**record, "explanation": explanation} for record, explanation in zip(records, explanations, strict=False)]


def _pictures_of_each(images: Any, num_prompts: int) -> list[list[Any]]:
    """The pictures of each text, from a picture, a list of them or a list of lists."""
    given = [] if images is None else list(images) if is_list(images) else [images]
    if any(map(is_list, given)):
        return [list(own) for own in given]
    return [given] if num_prompts == 1 else [[picture] for picture in given]
