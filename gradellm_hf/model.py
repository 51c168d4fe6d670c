"""`GradELLM`: a model and its tokenizer, from text to explanations."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from .architecture.facts import look_at
from .architecture.support import ModelWrapper, unwrap
from .checks.arguments import is_list
from .checks.renamed import renamed, warn_of_old_name
from .configuration import GradELLMConfig, checked_config
from .errors import InvalidInputError
from .generation import explain_generate, explain_sequences
from .results.chats import with_segments
from .results.output import ExplainGenerateOutput
from .sequences.prompt_checks import placeholder_mask
from .text.chats import Chat, is_chat
from .text.encoding import encode_prompt, encode_target, text_tokenizer

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
            explain_config: What to explain and how. None: the configuration of this object.
            tools, documents, chat_template, enable_thinking: For the chat template; see `apply_chat_template` of Transformers.
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
        tokenizer = text_tokenizer(self.tokenizer)
        template = {
            "tools": tools,
            "documents": documents,
            "chat_template": chat_template,
            "continue_final_message": continue_final_message,
            "enable_thinking": enable_thinking,
        }
        template = {name: value for name, value in template.items() if value is not None}
        encoded = [encode_prompt(tokenizer, prompt, template) for prompt in prompts]
        if target is None:
            input_ids, attention_mask = self._batch(tokenizer, [ids for _, _, ids in encoded])
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            out = explain_generate(self, **inputs, explain_config=explain_config, **self._with_tokenizer(generate_kwargs))
        else:
            if generate_kwargs:
                raise InvalidInputError(
                    f"With `target` nothing is generated, so {sorted(generate_kwargs)} mean nothing. Leave them out."
                )
            texts = _targets(target, len(prompts))
            targets = [encode_target(tokenizer, *prompt, text) for prompt, text in zip(encoded, texts)]
            out = self._explain_targets(tokenizer, [ids for _, _, ids in encoded], targets, explain_config)
        rows = out.explanations(tokenizer)
        each = len(rows) // len(prompts)
        explanations = [
            with_segments(row, tokenizer, prompts[i // each], encoded[i // each][0], template) for i, row in enumerate(rows)
        ]
        return explanations[0] if is_single and len(explanations) == 1 else explanations

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

    def _explain_targets(
        self, tokenizer: Any, prompts: list[list[int]], targets: list[list[int]], explain_config: GradELLMConfig | None
    ) -> ExplainGenerateOutput:
        prompt_ids, prompt_mask = self._batch(tokenizer, prompts)
        target_ids, target_mask = (x.flip(1) for x in self._batch(tokenizer, [ids[::-1] for ids in targets]))
        return explain_sequences(
            self,
            torch.cat([prompt_ids, target_ids], dim=1),
            prompt_ids.shape[1],
            torch.cat([prompt_mask, target_mask], dim=1),
            explain_config=explain_config,
        )

    def _batch(self, tokenizer: Any, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask `[R, P]`, padded on the left, on the device on which the model reads them."""
        facts = look_at(self.model)
        highest, size = max(map(max, rows)), facts.vocabulary_size
        if highest >= size:
            raise InvalidInputError(
                f"The tokenizer gave the token id {highest}, but the model knows {size} tokens. Use the model's own tokenizer."
            )
        placeholders = placeholder_mask(facts, torch.tensor([token_id for row in rows for token_id in row]))
        if placeholders is not None and bool(placeholders.any()):
            raise InvalidInputError(
                "The text holds placeholders of images, videos or sounds, and there is nothing that they stand for. Give what "
                "the model's processor makes of text and images, as tensors, to `explain_generate`."
            )
        padding, width = tokenizer.pad_token_id or 0, max(map(len, rows))
        ids = torch.tensor([[padding] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids.to(facts.input_device), mask.to(facts.input_device)


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


def _targets(target: Any, expected: int) -> list[str]:
    targets = [target] if isinstance(target, str) else list(target) if is_list(target) else []
    if len(targets) != expected or not all(isinstance(text, str) and text for text in targets):
        raise InvalidInputError(f"`target` must be a non-empty text for each of the {expected} prompts, got {target!r}.")
    return targets
