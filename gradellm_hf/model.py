"""`GradELLM`: a model and its tokenizer, from text to explanations."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .architecture.facts import look_at
from .architecture.support import ModelWrapper, unwrap
from .checks.arguments import is_list, one_each, whole_number
from .checks.renamed import renamed, warn_of_old_name
from .configuration import GradELLMConfig, checked_config
from .errors import InvalidInputError
from .generation import explain_generate, explain_sequences
from .metrics.removal_test import removal_test
from .results.chats import EncodedPrompt, with_segments
from .results.explanation import Explanation
from .results.output import ExplainGenerateOutput
from .results.ranking import Of
from .results.removals import Removals
from .sequences.text_batch import padded_batch
from .streaming import ExplainedStep, explain_stream
from .text.chats import Chat, is_chat
from .text.encoding import TEMPLATE_OPTIONS, encode_prompt, encode_target, text_tokenizer
from .text.foils import first_difference
from .text.readable import Level
from .text.token_text import token_texts
from .text.units import Spans

_SHARED_OPTIONS = (  # of `from_pretrained`: the tokenizer needs them too
    "cache_dir",
    "config",
    "force_download",
    "gguf_file",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)

_SIGNED = GradELLMConfig(positive_only=False)  # of a contrast: scores for the one and for the other


class GradELLM(ModelWrapper):
    """Wraps a model so that it explains what it writes. All other attributes are those of the wrapped model.

    Args:
        model: A decoder-only Transformers model in evaluation mode. It may be wrapped by PEFT, dispatched by accelerate, or
            compiled.
        tokenizer: Its tokenizer, or processor. Only `explain` needs it.
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
        from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

        if isinstance(config, GradELLMConfig) and explain_config is None:
            warn_of_old_name("config", "explain_config", stacklevel=2)
            explain_config, config = config, None
        checked_config(explain_config)
        if config is not None and not isinstance(config, PreTrainedConfig):
            raise InvalidInputError(
                "`config` must be the model's configuration, as AutoConfig.from_pretrained returns it, got "
                f"{type(config).__name__}. What to explain and how goes into `explain_config`."
            )
        if config is not None:
            kwargs["config"] = config
        if kwargs.get("distributed_config") is not None and device_map == "auto":
            device_map = None  # the processes share the model out
        model: Any = AutoModelForCausalLM.from_pretrained(name, device_map=device_map, dtype=dtype, **kwargs)
        if tokenizer is None:
            shared = {option: kwargs[option] for option in _SHARED_OPTIONS if option in kwargs}
            tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", **shared)
        return cls(model.eval(), tokenizer, explain_config)

    def generate(
        self, inputs: torch.Tensor | None = None, *, explain_config: GradELLMConfig | None = None, **generate_kwargs: Any
    ) -> ExplainGenerateOutput:
        """As `explain_generate`, with the configuration of this object if none is given.

        Args:
            inputs: Prompt, `[batch, P]`, as for `model.generate`.
            explain_config: What to explain and how; see `GradELLMConfig`.
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
        return explain_generate(self, inputs, explain_config=explain_config, **self._with_tokenizer(generate_kwargs))

    def explain(
        self,
        text: str | Chat | Sequence[str | Chat],
        target: str | Sequence[str] | None = None,
        *,
        foil: str | Sequence[str] | None = None,
        explain_config: GradELLMConfig | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | None = None,
        enable_thinking: bool | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Explains what the model writes, or why it would write a given text.

        Args:
            text: A prompt; a chat; or a list of prompts or chats. A chat is a list of messages
                `{"role": ..., "content": ...}` and goes through the tokenizer's chat template. A content is a text or a list
                of parts `{"type": "text", "text": ...}`. Images, videos and sounds are refused.
            target: The text to explain in place of what the model would write (teacher forcing), one per prompt. It follows
                the prompt directly: begin it with a space if one belongs between them. All of it is explained, also what
                comes after an end-of-sequence token in it. None: the model writes.
            foil: A text that could stand in the place of the target, or of what the model writes, one per prompt: why the one
                and not the other? The first token is explained at which the two differ, by the difference of their logits;
                what they have in common before it becomes part of the prompt. Unless `explain_config` says otherwise, scores
                are signed: negative ones speak for the foil.
            explain_config: What to explain and how. None: the configuration of this object.
            tools: For the chat template: functions or JSON schemas; see `apply_chat_template` of Transformers.
            documents: For the chat template: dicts with `title` and `text`.
            chat_template: To use instead of the tokenizer's.
            enable_thinking: For the chat template.
            continue_final_message: Whether the model goes on with the last message. None: if it is an assistant's.
            **generate_kwargs: For `model.generate`: `max_new_tokens`, `do_sample`, ... Not together with `target`.

        Returns:
            An `Explanation`. A list of them for a list of prompts, or if `num_return_sequences` asks for several.

        Raises:
            InvalidInputError: There is no tokenizer, no text, or no chat template; a chat holds something else than text; the
                tokenizer is not the model's; or an argument is not usable.
            UnsupportedArchitectureError: The model cannot be explained exactly.

        Examples:
            >>> explainer = GradELLM(model, tokenizer)
            >>> explanation = explainer.explain([{"role": "user", "content": "Name a colour."}], max_new_tokens=4)
            >>> explanation.attributions.shape == (4, len(explanation.tokens))  # [N, S]
            True
        """
        prompts, is_single = _prompts(text)
        given = (tools, documents, chat_template, continue_final_message, enable_thinking)
        asked = self._encoded(prompts, dict(zip(TEMPLATE_OPTIONS, given)))
        if target is not None and generate_kwargs:
            raise InvalidInputError(
                f"With `target` nothing is generated, so {sorted(generate_kwargs)} mean nothing. Leave them out."
            )
        if foil is not None:
            rows = self._contrasts(asked, target, foil, explain_config, generate_kwargs)
        elif target is not None:
            texts = one_each("target", target, len(prompts))
            targets = [
                encode_target(text_tokenizer(self.tokenizer), *prompt.encoded, text) for prompt, text in zip(asked, texts)
            ]
            rows = self._explain_targets(asked, targets, explain_config)
        else:
            ids, mask = self._batch([prompt.ids for prompt in asked])
            kwargs = self._with_tokenizer(generate_kwargs)
            out = explain_generate(self, input_ids=ids, attention_mask=mask, explain_config=explain_config, **kwargs)
            rows = self._readable(out, asked)
        return rows[0] if is_single and len(rows) == 1 else rows

    def stream(
        self,
        text: str | Chat,
        *,
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
        (asked,) = self._encoded([text], dict(zip(TEMPLATE_OPTIONS, given)))
        ids, mask = self._batch([asked.ids])
        kwargs = self._with_tokenizer(generate_kwargs)
        return explain_stream(self, input_ids=ids, attention_mask=mask, explain_config=explain_config, every=every, **kwargs)

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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # not set yet, while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.model, name)

    def __repr__(self) -> str:
        return f"GradELLM({type(self.model).__name__}, explain_config={self.explain_config!r})"

    def _with_tokenizer(self, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `generate`, with the tokenizer among them if `generate` needs one to find `stop_strings`."""
        if self.tokenizer is None or "tokenizer" in generate_kwargs:
            return generate_kwargs
        configs = (generate_kwargs.get("generation_config"), unwrap(self.model).generation_config)
        given = [generate_kwargs["stop_strings"]] if "stop_strings" in generate_kwargs else []
        if all(strings is None for strings in given or [getattr(config, "stop_strings", None) for config in configs]):
            return generate_kwargs
        return {**generate_kwargs, "tokenizer": text_tokenizer(self.tokenizer)}

    def _encoded(self, prompts: Sequence[str | Chat], options: dict[str, Any]) -> list[EncodedPrompt]:
        tokenizer = text_tokenizer(self.tokenizer)
        options = {name: value for name, value in options.items() if value is not None}
        return [EncodedPrompt(prompt, options, encode_prompt(tokenizer, prompt, options)) for prompt in prompts]

    def _explain_targets(
        self, asked: list[EncodedPrompt], targets: list[list[int]], explain_config: GradELLMConfig | None
    ) -> list[Explanation]:
        """Explanations of given token ids after prompts."""
        ids, mask = self._batch([prompt.ids for prompt in asked])
        target_ids, target_mask = (x.flip(1) for x in self._batch([target[::-1] for target in targets]))
        sequences, mask = torch.cat([ids, target_ids], dim=1), torch.cat([mask, target_mask], dim=1)
        out = explain_sequences(self, sequences, ids.shape[1], mask, explain_config=explain_config)
        return self._readable(out, asked)

    def _readable(self, out: ExplainGenerateOutput, asked: list[EncodedPrompt]) -> list[Explanation]:
        tokenizer = text_tokenizer(self.tokenizer)
        each = len(out.attributions) // len(asked)
        return [with_segments(row, tokenizer, asked[i // each]) for i, row in enumerate(out.explanations(tokenizer))]

    def _contrasts(
        self,
        asked: list[EncodedPrompt],
        target: Any,
        foil: Any,
        explain_config: GradELLMConfig | None,
        generate_kwargs: dict[str, Any],
    ) -> list[Explanation]:
        """The explanations of the first step at which what is written and the foil differ."""
        foils = one_each("foil", foil, len(asked))
        if target is None:
            ids, mask = self._batch([prompt.ids for prompt in asked])
            kwargs = self._with_tokenizer(generate_kwargs)
            out = explain_generate(self, input_ids=ids, attention_mask=mask, explain_config=GradELLMConfig(layers=1), **kwargs)
            each = len(out.attributions) // len(asked)
            asked, foils = [x for x in asked for _ in range(each)], [x for x in foils for _ in range(each)]
            written = [row[mask].tolist() for row, mask in zip(out.sequences[:, out.prompt_length :], out.step_mask)]
        else:
            texts = one_each("target", target, len(asked))
            written = [
                encode_target(text_tokenizer(self.tokenizer), *prompt.encoded, text) for prompt, text in zip(asked, texts)
            ]
        pairs = [
            first_difference(ids, encode_target(text_tokenizer(self.tokenizer), *prompt.encoded, text), text)
            for prompt, ids, text in zip(asked, written, foils)
        ]
        asked = [prompt.continued(ids[:step]) for prompt, ids, (step, _) in zip(asked, written, pairs)]
        contrast: dict[str, Any] = {"target": "contrast", "contrast_token_ids": [[token_id] for _, token_id in pairs]}
        config = explain_config or self.explain_config or _SIGNED
        config = dataclasses.replace(config, **contrast)
        rows = self._explain_targets(asked, [[ids[step]] for ids, (step, _) in zip(written, pairs)], config)
        names = [
            token_texts(text_tokenizer(self.tokenizer), [*prompt.ids, token_id])[-1]
            for prompt, (_, token_id) in zip(asked, pairs)
        ]
        return [dataclasses.replace(row, foil=name) for row, name in zip(rows, names)]

    def _batch(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        return padded_batch(look_at(self.model), rows, text_tokenizer(self.tokenizer).pad_token_id)


def _prompts(text: Any) -> tuple[list[str | Chat], bool]:
    """The prompts, and whether a single one was given rather than a list."""
    is_single = isinstance(text, str) or is_chat(text)
    prompts = [text] if is_single else list(text) if is_list(text) else []
    if not prompts or not all(isinstance(prompt, str) or is_chat(prompt) for prompt in prompts):
        raise InvalidInputError(
            'Give a text, a chat [{"role": "user", "content": ...}, ...], or a list of texts or chats with at least one in it; '
            f"got {text!r}."
        )
    return prompts, is_single
