"""`explain_generate` and `explain_sequences`: `generate` as it is, and then the explanation of what it wrote."""

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .architecture import attention_layers, explainable, explained_layers, not_finite, unwrap, vocabulary_size
from .caches import prompt_cache
from .configuration import GradELLMConfig
from .errors import GradELLMWarning, InvalidInputError
from .heatmaps import Heatmaps
from .outputs import ExplainGenerateOutput
from .recording import PromptRecording, check_left_padding, record_prompt
from .replay import replay
from .self_check import why_not_replay
from .sequences import ExplainedSequences
from .stepwise import stepwise

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def explain_generate(
    model: Any, inputs: Tensor | None = None, *, explain_config: GradELLMConfig | None = None, **generate_kwargs: Any
) -> ExplainGenerateOutput:
    """Generates as `model.generate` does, and explains every generated token.

    Args:
        model: A decoder-only Transformers model with softmax attention, in evaluation mode; also wrapped by PEFT, dispatched
            by accelerate, or compiled.
        inputs: Prompt, `[batch, P]`, as for `model.generate`. Batches are padded on the left.
        explain_config: What to explain and how; see `GradELLMConfig`.
        **generate_kwargs: Everything else that `model.generate` takes; it means the same.

    Returns:
        What `model.generate` returned, with the same token ids, and a heatmap for every generated token.

    Raises:
        UnsupportedArchitectureError: The model cannot be explained exactly.
        InvalidInputError: An argument or the state of the model is not usable. Whatever goes wrong after the text has
            been generated, the exception carries what `generate` returned as its attribute `generated`.
    """
    config = _checked(explain_config)
    inner = unwrap(model)
    layers = explained_layers(inner, config)
    options = _Options(inner, inputs, generate_kwargs)
    with record_prompt(inner, options.prompt_length) as recording:
        returned = model.generate(inputs, **options.generate_kwargs)
    generated = {"sequences": returned} if isinstance(returned, Tensor) else dict(returned)
    cache = generated.get("past_key_values")
    if not options.returns_dict:
        generated.pop("past_key_values", None)
    del returned
    try:
        sequences = _from_recording(generated["sequences"], recording, options)
        row_indices = _prompt_rows(sequences.token_ids.shape[0], recording.rows, options.returned_per_prompt)
        with torch.inference_mode(False):
            prompt = prompt_cache(cache, options.prompt_length - 1, row_indices)
        del cache
        if prompt is None and recording.prefill_kwargs and row_indices is not None:
            raise InvalidInputError(
                f"{sorted(recording.prefill_kwargs)} with beam search cannot be read again, and the cache that `generate` left "
                "has dropped a part of the prompt (a sliding window that has moved on). Use `num_beams=1`."
            )
        if prompt is None and not options.has_whole_prompt:
            raise InvalidInputError(
                "The start of the prompt is only in `past_key_values`, in a form that cannot be read back (a sliding window "
                "that has moved on, or a quantised or offloaded cache). Pass the token ids of the whole prompt."
            )
        heatmaps = _explain(inner, sequences, config, layers, prompt)
        return _output(inner, sequences, config, heatmaps, generated)
    except BaseException as error:
        error.generated = ModelOutput(generated)  # type: ignore[attr-defined]
        raise


def explain_sequences(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    explain_config: GradELLMConfig | None = None,
) -> ExplainGenerateOutput:
    """Explains why a model would write given text (teacher forcing): every token from `prompt_length` on.

    Args:
        model: As for `explain_generate`.
        sequences: Token ids of prompts, padded on the left, and continuations, `[R, S]`.
        prompt_length: `P`, from 1 to `S`.
        attention_mask: 0 for padding, `[R, P]` or `[R, S]`; in the continuation, 0 marks steps after a row's end.
        explain_config: What to explain and how; see `GradELLMConfig`.

    Returns:
        As `explain_generate`. A row also ends at its first end-of-sequence token.

    Raises:
        UnsupportedArchitectureError: The model cannot be explained exactly.
        InvalidInputError: An argument or the state of the model is not usable.
    """
    config = _checked(explain_config)
    inner = unwrap(model)
    layers = explained_layers(inner, config)
    _check_sequences(inner, sequences, prompt_length, attention_mask)
    num_steps = sequences.shape[1] - prompt_length
    with torch.inference_mode(False):
        step_mask = _step_mask(sequences[:, prompt_length:], _eos_token_ids(inner.generation_config.eos_token_id))
        padding = None
        if attention_mask is not None:
            padding = attention_mask[:, :prompt_length]
            if attention_mask.shape[1] > prompt_length:
                step_mask = step_mask & (attention_mask[:, prompt_length:] != 0)
    text = _sequences(sequences, prompt_length, num_steps, step_mask, padding)
    heatmaps = _explain(inner, text, config, layers, None)
    return _output(inner, text, config, heatmaps, {"sequences": sequences})


def _checked(config: GradELLMConfig | None) -> GradELLMConfig:
    if config is None:
        return GradELLMConfig()
    if not isinstance(config, GradELLMConfig):
        raise InvalidInputError(f"`explain_config` must be a GradELLMConfig, got {type(config).__name__}.")
    return config


class _Options:
    """What has to be known of a call of `generate` beside its result."""

    def __init__(self, model: "PreTrainedModel", inputs: Tensor | None, kwargs: dict[str, Any]):
        generation_config = kwargs.get("generation_config")
        sources = (
            vars(generation_config) if generation_config is not None else {},
            vars(model.generation_config),
        )

        def option(name: str, default: Any) -> Any:
            if name in kwargs:  # None, too, is what the caller wants
                return kwargs[name]
            return next((source[name] for source in sources if source.get(name) is not None), default)

        if option("cache_implementation", None) == "paged":
            raise InvalidInputError(
                '`cache_implementation="paged"` (continuous batching) keeps no prompt to explain; leave it out.'
            )
        if option("token_healing", False):
            raise InvalidInputError(
                "`token_healing` rewrites the prompt. Heal it first (`model.heal_tokens(input_ids, tokenizer)`), then explain."
            )
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        embeds = kwargs.get("inputs_embeds")
        mask = kwargs.get("attention_mask")
        #: Columns of the prompt in the returned sequences.
        self.prompt_ids_length = ids.shape[1] if ids is not None else int(embeds is None)
        if embeds is not None:
            self.prompt_length = embeds.shape[1]
        else:
            self.prompt_length = max(self.prompt_ids_length, mask.shape[1] if mask is not None else 0)
        if self.prompt_length == 0:
            raise InvalidInputError("The prompt is empty. Give it at least one token (a beginning-of-sequence token, say).")
        self.has_whole_prompt = embeds is not None or self.prompt_length == self.prompt_ids_length
        self.prompt_embeds = embeds
        self.attention_mask = mask
        self.returned_per_prompt = option("num_return_sequences", 1) or 1
        self.returns_dict = bool(option("return_dict_in_generate", False))
        self.eos_token_ids = _eos_token_ids(option("eos_token_id", None))
        check_left_padding(mask, self.prompt_length)
        if generation_config is None:
            self.generate_kwargs = {**kwargs, "return_dict_in_generate": True}
        else:
            generation_config = copy.deepcopy(generation_config)
            generation_config.return_dict_in_generate = True
            self.generate_kwargs = {**kwargs, "generation_config": generation_config}
            self.generate_kwargs.pop("return_dict_in_generate", None)


def _from_recording(token_ids: Tensor, recording: PromptRecording, options: _Options) -> ExplainedSequences:
    num_steps = token_ids.shape[1] - options.prompt_ids_length
    step_mask = _step_mask(token_ids[:, options.prompt_ids_length :], options.eos_token_ids)
    rows = _prompt_rows(token_ids.shape[0], recording.rows, options.returned_per_prompt)

    def returned_rows(x: Tensor, dim: int) -> Tensor:
        return x if rows is None or x.shape[dim] == 1 else x.index_select(dim, rows.to(x.device))

    def copies(x: Tensor) -> Tensor:
        """Of a prompt for each sequence returned for it."""
        return x.repeat_interleave(token_ids.shape[0] // x.shape[0], dim=0)

    padding, embeds = recording.padding, options.prompt_embeds
    if padding is not None:
        padding = returned_rows(padding, 0)
    elif options.attention_mask is not None:
        padding = copies(options.attention_mask[:, : options.prompt_length])
    return _sequences(
        token_ids,
        options.prompt_length,
        num_steps,
        step_mask,
        padding,
        {name: returned_rows(x, -2) for name, x in recording.per_position.items()},
        prompt_embeds=None if embeds is None else copies(embeds),
        forward_kwargs=recording.forward_kwargs,
        prefill_kwargs=recording.prefill_kwargs,
    )


def _sequences(
    token_ids: Tensor,
    prompt_length: int,
    num_steps: int,
    step_mask: Tensor,
    padding: Tensor | None,
    per_position: dict[str, Tensor] | None = None,
    prompt_embeds: Tensor | None = None,
    **kwargs: Any,
) -> ExplainedSequences:
    """Extends what is known of the prompt's positions over the generated ones, as `generate` does."""
    with torch.inference_mode(False):
        if padding is not None and bool((padding != 0).all()):
            padding = None
        per_position = dict(per_position or {})
        if "position_ids" not in per_position:
            real = torch.ones_like(token_ids[:, :1]).expand(-1, prompt_length) if padding is None else padding.long()
            per_position["position_ids"] = (real.cumsum(-1) - 1).masked_fill(real == 0, 0)
        ahead = torch.arange(1, num_steps + 1, device=token_ids.device)
        for name, known in per_position.items():
            generated = known[..., -1:].expand(*known.shape[:-1], num_steps)
            if name == "position_ids":
                generated = generated + ahead.to(known)
            elif name == "mm_token_type_ids":
                generated = torch.zeros_like(generated)  # generated tokens are text
            per_position[name] = torch.cat([known, generated], dim=-1)
        if padding is not None:
            ones = padding.new_ones(padding.shape[0], num_steps)
            padding = torch.cat([padding, ones], dim=-1)
        return ExplainedSequences(
            token_ids=_outside_inference_mode(token_ids),
            prompt_length=prompt_length,
            num_steps=num_steps,
            per_position=per_position,
            step_mask=_outside_inference_mode(step_mask),
            attention_mask=padding,
            prompt_embeds=None if prompt_embeds is None else _outside_inference_mode(prompt_embeds.detach()),
            **kwargs,
        )


def _explain(
    model: "PreTrainedModel", sequences: ExplainedSequences, config: GradELLMConfig, layers: list[int], cache: Any
) -> Heatmaps:
    with explainable(model):
        if cache is None:
            cache = sequences.prefill(model)
        engine = config.engine
        if engine == "replay" and (reason := why_not_replay(model, sequences, cache)) is not None:
            warnings.warn(
                f"`{model.config.model_type}` is explained with the stepwise engine, which is exact but slow: {reason}.",
                GradELLMWarning,
                stacklevel=3,
            )
            engine = "stepwise"
        heatmaps = (replay if engine == "replay" else stepwise)(model, sequences, config, layers, cache)
    if not (heatmaps.attributions.isfinite().all() and heatmaps.target_scores.isfinite().all()):
        raise not_finite(model)
    return heatmaps


def _output(
    model: "PreTrainedModel",
    sequences: ExplainedSequences,
    config: GradELLMConfig,
    heatmaps: Heatmaps,
    generated: dict[str, Any],
) -> ExplainGenerateOutput:
    known = {name: value for name, value in generated.items() if name in ExplainGenerateOutput.__dataclass_fields__}
    by_layer = heatmaps.layer_attributions
    rows, prompt_length = sequences.token_ids.shape[0], sequences.prompt_length
    prompt_mask = torch.ones(rows, prompt_length, dtype=torch.bool, device=sequences.token_ids.device)
    if sequences.attention_mask is not None:
        prompt_mask = sequences.attention_mask[:, :prompt_length] != 0
    return ExplainGenerateOutput(
        **known,
        attributions=heatmaps.attributions.float(),
        step_mask=sequences.step_mask,
        prompt_length=prompt_length,
        target_scores=heatmaps.target_scores.float(),
        token_probabilities=heatmaps.token_probabilities.float(),
        layer_attributions=None if by_layer is None else by_layer.float(),
        prompt_mask=prompt_mask,
        image_mask=_image_mask(model, sequences),
        layers=heatmaps.layers,
        layer_names=_layer_names(model, heatmaps.layers),
        explain_config=config,
        model_name=getattr(model.config, "name_or_path", "") or type(model).__name__,
    )


def _layer_names(model: "PreTrainedModel", layers: list[int]) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    modules = attention_layers(model)
    return [names[id(modules[layer])] for layer in layers]


def _image_mask(model: "PreTrainedModel", sequences: ExplainedSequences) -> Tensor | None:
    """Which prompt positions hold an image, `[R, P]`; None for models without images and prompts without ids."""
    ids = {getattr(model.config, name, None) for name in ("image_token_id", "image_token_index")} - {None}
    if not ids or sequences.token_ids.shape[1] != sequences.length:
        return None
    prompt_ids = sequences.token_ids[:, : sequences.prompt_length]
    return torch.isin(prompt_ids, torch.tensor(sorted(ids), device=prompt_ids.device))


def _prompt_rows(num_rows: int, num_recorded: int, returned_per_prompt: int) -> Tensor | None:
    """The recorded row with the prompt of each returned row; None where they correspond one to one."""
    if num_rows == num_recorded:
        return None
    num_prompts = num_rows // returned_per_prompt
    return torch.arange(num_rows) // returned_per_prompt * (num_recorded // num_prompts)


def _step_mask(generated_ids: Tensor, eos_token_ids: list[int]) -> Tensor:
    """False after the first end-of-sequence token of a row."""
    is_eos = torch.isin(generated_ids, torch.tensor(eos_token_ids, dtype=torch.long, device=generated_ids.device))
    return is_eos.cumsum(1) - is_eos.long() == 0


def _eos_token_ids(eos: int | list[int] | Tensor | None) -> list[int]:
    return [] if eos is None else torch.as_tensor(eos).flatten().tolist()


def _outside_inference_mode(x: Tensor) -> Tensor:
    return x.clone() if x.is_inference() else x


def _check_sequences(model: "PreTrainedModel", sequences: Any, prompt_length: int, attention_mask: Tensor | None) -> None:
    if not isinstance(sequences, Tensor) or sequences.ndim != 2 or sequences.dtype not in (torch.int64, torch.int32):
        got = f"{sequences.dtype} {list(sequences.shape)}" if isinstance(sequences, Tensor) else type(sequences).__name__
        raise InvalidInputError(f"`sequences` must be token ids of shape [R, S] (int64), got {got}.")
    rows, length = sequences.shape
    if not isinstance(prompt_length, int) or not 1 <= prompt_length <= length:
        raise InvalidInputError(f"`prompt_length` must be an int from 1 to S = {length}, got {prompt_length!r}.")
    vocabulary = vocabulary_size(model)
    if rows and (sequences.min() < 0 or sequences.max() >= vocabulary):
        raise InvalidInputError(
            f"`sequences` holds token ids from {sequences.min()} to {sequences.max()}, but the model has {vocabulary} tokens."
        )
    if attention_mask is not None:
        if not isinstance(attention_mask, Tensor) or attention_mask.shape not in ((rows, length), (rows, prompt_length)):
            got = str(list(attention_mask.shape)) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
            raise InvalidInputError(
                f"`attention_mask` must have shape [R, S] = {[rows, length]} or [R, P] = {[rows, prompt_length]}, got {got}."
            )
        check_left_padding(attention_mask, prompt_length)
