"""`GradELLM`: a model and its tokenizer, from text to explanations."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..architecture.support import ModelWrapper
from ..checks.arguments import whole_number
from ..checks.renamed import renamed, warn_of_old_name
from ..configuration import GradELLMConfig, checked_config
from ..errors import InvalidInputError
from ..generation import explain_generate
from ..metrics.removal_test import removal_test
from ..results.explanation import Explanation
from ..results.output import ExplainGenerateOutput
from ..results.ranking import Of
from ..results.removals import Removals
from ..sequences.steps import Steps
from ..streaming import ExplainedStep, explain_stream
from ..text.chats import Chat, is_chat
from ..text.encoding import TEMPLATE_OPTIONS
from ..text.readable import Level
from ..text.units import Spans
from .loading import checked_model_config, load_model, load_tokenizer
from .reading import Reading, in_batches, pictures_beside, prompts_of
from .targets import explain_contrasts, explain_targets, targets_of


class GradELLM(ModelWrapper):
    """Wraps a model so that it explains what it writes. All other attributes are those of the wrapped model.

    Args:
        model: A decoder-only Transformers model in evaluation mode. It may be wrapped by PEFT, dispatched by accelerate, or
            compiled.
        tokenizer: Its tokenizer; or its processor, which also reads images. Only `explain` needs it.
        explain_config: What to explain and how, unless a call says otherwise.

    Attributes:
        model, tokenizer, explain_config: As given. `config` is the wrapped model's.

    Raises:
        InvalidInputError: `explain_config` is not a GradELLMConfig.

    Examples:
        >>> explainer = GradELLM(model, tokenizer)
        >>> explanation = explainer.explain("The capital of Italy is", target=" Rome")
        >>> explanation.tokens
        ['The', ' capital', ' of', ' Italy', ' is', ' Rome']
        >>> explainer.config.model_type  # an attribute of the wrapped model
        'llama'
    """

    @renamed(config="explain_config")
    def __init__(self, model: Any, tokenizer: Any = None, explain_config: GradELLMConfig | None = None):
        checked_config(explain_config)
        self.model, self.tokenizer, self.explain_config = model, tokenizer, explain_config

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device_map: Any = "auto",
        dtype: Any = "auto",
        tokenizer: Any = None,
        explain_config: GradELLMConfig | None = None,
        config: Any = None,
        **kwargs: Any,
    ) -> "GradELLM":
        """Loads a model in evaluation mode, and its tokenizer, which pads on the left.

        Args:
            name: A folder, or the name of a model on the Hub.
            device_map: Where its layers go. `"auto"` fills the devices, then the memory of the host, then the disk. None: the
                memory of the host, without accelerate.
            dtype: Of the weights. `"auto"`: as in the file.
            tokenizer: A tokenizer to use instead of the one in the model's folder.
            explain_config: What to explain and how.
            config: The model's, as `AutoConfig.from_pretrained` returns it, instead of the one that lies with the model.
            **kwargs: For `AutoModelForCausalLM.from_pretrained`: `max_memory`, `offload_folder`, `quantization_config`,
                `attn_implementation`, `gguf_file`, `revision`, ...

        Raises:
            InvalidInputError: `explain_config` is not a GradELLMConfig, or `config` is not a configuration of a model.
            OSError: There is no such model.

        Examples:
            >>> _ = model.save_pretrained("my-model"), tokenizer.save_pretrained("my-model")
            >>> GradELLM.from_pretrained("my-model", dtype="float32")
            GradELLM(LlamaForCausalLM, explain_config=None)
        """
        if isinstance(config, GradELLMConfig) and explain_config is None:
            warn_of_old_name("config", "explain_config", stacklevel=2)
            explain_config, config = config, None
        checked_config(explain_config)
        if config is not None:
            kwargs["config"] = checked_model_config(config)
        model = load_model(name, device_map, dtype, kwargs)
        return cls(model, load_tokenizer(name, kwargs) if tokenizer is None else tokenizer, explain_config)

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *,
        explain_config: GradELLMConfig | None = None,
        steps: Steps | None = None,
        **generate_kwargs: Any,
    ) -> ExplainGenerateOutput:
        """As `explain_generate`, with the configuration of this object if none is given.

        Args:
            inputs: Prompt, `[batch, P]`, as for `model.generate`.
            explain_config: What to explain and how; see `GradELLMConfig`.
            steps: Explain only these of the generated tokens; see `explain_generate`.
            **generate_kwargs: Everything else that `model.generate` takes.

        Returns:
            As `explain_generate`: token ids `[R, S]` and heatmaps `[R, N, S]` among others.

        Raises:
            UnsupportedArchitectureError: The model cannot be explained exactly.
            InvalidInputError: An argument or the state of the model is not usable.

        Examples:
            >>> out = GradELLM(model, tokenizer).generate(**inputs, max_new_tokens=4)
            >>> out.attributions.shape  # [R, N, S]
            torch.Size([1, 4, 9])
        """
        kwargs = self._reading.generate_kwargs(generate_kwargs)
        return explain_generate(self, inputs, explain_config=explain_config, steps=steps, **kwargs)

    def explain(
        self,
        text: str | Chat | Sequence[str | Chat],
        target: str | Sequence[str] | None = None,
        *,
        images: Any = None,
        foil: str | Sequence[str] | None = None,
        steps: Steps | None = None,
        explain_config: GradELLMConfig | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | None = None,
        enable_thinking: bool | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Explains what the model writes, or why it would write a given text.

        Args:
            text: A prompt; a chat; or a list of prompts or chats. A chat is a list of messages
                `{"role": ..., "content": ...}` and goes through the tokenizer's chat template. A content is a text or a list
                of parts `{"type": "text", "text": ...}` and, if the `tokenizer` of this object is the model's processor,
                `{"type": "image", "image": picture}`. A picture is a PIL image, an array, a path or a URL. Videos and sounds
                are refused.
            target: The text to explain in place of what the model would write (teacher forcing), one per prompt. It follows
                the prompt directly: begin it with a space if one belongs between them. All of it is explained, also what
                comes after an end-of-sequence token in it. None: the model writes.
            images: Pictures for the placeholders of a text, or for the parts `{"type": "image"}` of a chat that hold none: one,
                or a list of them; for a list of prompts a list with those of each.
            foil: A text that could stand in the place of the target, or of what the model writes, one per prompt: why the one
                and not the other? The first token is explained at which the two differ, by the difference of their logits;
                what they have in common before it becomes part of the prompt. Unless `explain_config` says otherwise, scores
                are signed: negative ones speak for the foil.
            steps: Explain only these of the tokens of the target, or of what the model writes: a slice, such as
                `slice(-16, None)`, or a list of indices, negative ones as in Python. See `explain_generate`.
            explain_config: What to explain and how. None: the configuration of this object.
            tools: For the chat template: functions or JSON schemas; see `apply_chat_template` of Transformers.
            documents: For the chat template: dicts with `title` and `text`.
            chat_template: To use instead of the tokenizer's.
            enable_thinking: For the chat template.
            continue_final_message: Whether the model goes on with the last message. None: if it is an assistant's.
            processor_kwargs: For the processor, if there are images: `{"do_pan_and_scan": True}`, `{"size": ...}`, ...
            **generate_kwargs: For `model.generate`: `max_new_tokens`, `do_sample`, ... Not together with `target`.

        Returns:
            An `Explanation`. A list of them for a list of prompts, or if `num_return_sequences` asks for several. Prompts with
            images are explained one after the other; see `Explanation.image_heatmap`.

        Raises:
            InvalidInputError: There is no tokenizer, no text, or no chat template; a chat holds something else than text and
                images that the processor reads; the tokenizer is not the model's; or an argument is not usable.
            UnsupportedArchitectureError: The model cannot be explained exactly.

        Examples:
            >>> explainer = GradELLM(model, tokenizer)
            >>> explanation = explainer.explain([{"role": "user", "content": "Name a colour."}], max_new_tokens=4)
            >>> explanation.attributions.shape == (4, len(explanation.tokens))  # [N, S]
            True
        """
        prompts, is_single = prompts_of(text)
        given = (tools, documents, chat_template, continue_final_message, enable_thinking)
        reading = self._reading
        beside = pictures_beside(images, prompts, is_single)
        asked = reading.encoded(prompts, dict(zip(TEMPLATE_OPTIONS, given)), beside, processor_kwargs)
        if target is not None and generate_kwargs:
            raise InvalidInputError(
                f"With `target` nothing is generated, so {sorted(generate_kwargs)} mean nothing. Leave them out."
            )
        if foil is not None:
            if steps is not None:
                raise InvalidInputError("With `foil` the one step at which both differ is explained. Leave `steps` out.")
            rows = explain_contrasts(self, reading, asked, target, foil, explain_config, generate_kwargs)
        elif target is not None:
            rows = explain_targets(self, reading, asked, targets_of(reading, asked, target), explain_config, steps)
        else:
            rows = []
            for together in in_batches(asked):
                out = self.generate(**reading.batch(together), explain_config=explain_config, steps=steps, **generate_kwargs)
                rows += reading.explanations(out, together)
        return rows[0] if is_single and len(rows) == 1 else rows

    def stream(
        self,
        text: str | Chat,
        *,
        images: Any = None,
        explain_config: GradELLMConfig | None = None,
        every: int = 1,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | None = None,
        enable_thinking: bool | None = None,
        **generate_kwargs: Any,
    ) -> Iterator[ExplainedStep]:
        """Yields each new token of the answer to a prompt or chat, with its heatmap, while the model goes on writing.

        Args:
            text: A prompt, or a chat.
            images: As for `explain`.
            explain_config: As for `explain`.
            every: How many tokens are explained together, as for `explain_stream`: with more than one, tokens wait for nothing,
                and their heatmaps are filled in later.
            tools: As for `explain`.
            documents: As for `explain`.
            chat_template: As for `explain`.
            continue_final_message: As for `explain`.
            enable_thinking: As for `explain`.
            **generate_kwargs: For `model.generate`, except beams.

        Yields:
            As `explain_stream`, with one row.

        Raises:
            InvalidInputError: As for `explain` and `explain_stream`.
            UnsupportedArchitectureError: The model cannot be explained exactly.

        Examples:
            >>> for step in GradELLM(model, tokenizer).stream("The capital of Italy is", max_new_tokens=2):
            ...     print(step.step, step.attributions.shape)  # n, [1, P + n]
            0 torch.Size([1, 5])
            1 torch.Size([1, 6])
        """
        if not (isinstance(text, str) or is_chat(text)):
            raise InvalidInputError(f"Give a text or a chat to stream the answer of, got {text!r}.")
        given = (tools, documents, chat_template, continue_final_message, enable_thinking)
        reading = self._reading
        asked = reading.encoded([text], dict(zip(TEMPLATE_OPTIONS, given)), pictures_beside(images, [text], True))
        batch = reading.batch(asked)
        kwargs = reading.generate_kwargs(generate_kwargs)
        return explain_stream(self, **batch, explain_config=explain_config, every=every, **kwargs)

    def removal_test(
        self,
        explanation: Explanation,
        by: Level | Spans = "sentence",
        of: Of = "sentence",
        *,
        k: int = 1,
        batch_size: int = 16,
    ) -> Removals:
        """What each part of the answer loses when its strongest sources are taken out of the prompt.

        A share says what was read. This says what was needed: the model reads the prompt again without the tokens of the `k`
        strongest sources, and the log-probability of the same answer is compared. Beside it stands what it loses without as
        many tokens of the rest. The first and the last token of the prompt, the template and special tokens stay.

        Args:
            explanation: What `explain` of this model returned.
            by: The sources; see `Explanation.sources`.
            of: The parts of the answer.
            k: How many of the strongest sources are taken out together.
            batch_size: Prompts that are read together.

        Returns:
            One `Removal` for each part.

        Raises:
            InvalidInputError: As for `Explanation.sources`; or the explanation is not of tokens, or not of this model.
            UnsupportedArchitectureError: The model is not a decoder-only model.

        Examples:
            >>> removals = GradELLM(model, tokenizer).removal_test(explanation, by="word", of="answer")
            >>> removals[0].part.text == explanation.answer, len(removals[0].removed)
            (True, 1)
        """
        k, sources = whole_number("k", k, 1), explanation.sources(by, of)
        return removal_test(self.model, explanation, sources, k, batch_size)

    @property
    def _reading(self) -> Reading:
        return Reading(self.model, self.tokenizer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # not set yet, while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.model, name)

    def __repr__(self) -> str:
        return f"GradELLM({type(self.model).__name__}, explain_config={self.explain_config!r})"
