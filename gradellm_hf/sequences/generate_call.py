"""From the arguments of a call, and from what `generate` did with them, to the sequences that the engines explain."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteriaList

from ..architecture.support import forward_parameters, placeholder_mask, vocabulary_size
from ..checks.arguments import binary_mask, is_index
from ..architecture.caches import is_quantized_cache
from ..errors import InvalidInputError
from ..architecture.positions import PositionRoom
from ..architecture.quantization import is_quantized
from .recording import PromptRecording, check_left_padding
from .row_ends import RowEnds
from .explained import ExplainedSequences, extended_prompt
from .written_logits import WrittenLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_ID_DTYPES = (torch.int64, torch.int32)
_ASSISTED = ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


class GenerateCall:
    """What has to be known of a call of `generate` beside its result.

    Attributes:
        generate_kwargs: The arguments of the call, asking for everything that `generate` can return.
        returns_dict: Whether the caller asked for that too.
        prompt_length: `P`.
        has_whole_prompt: Whether ids or embeddings of the whole prompt were given; else its start is in `cache`.

    Raises:
        InvalidInputError: The prompt, or what is asked for, cannot be explained. Nothing has been generated then.
    """

    def __init__(self, model: "PreTrainedModel", inputs: Tensor | None, kwargs: dict[str, Any]):
        generation_config = kwargs.get("generation_config")
        if generation_config is not None and not hasattr(generation_config, "to_dict"):
            raise InvalidInputError(f"`generation_config` must be a GenerationConfig, got {type(generation_config).__name__}.")
        sources = (vars(generation_config) if generation_config is not None else {}, vars(model.generation_config))

        def option(name: str, default: Any = None) -> Any:
            if name in kwargs:  # None, too, is what the caller wants
                return kwargs[name]
            return next((source[name] for source in sources if source.get(name) is not None), default)

        if option("cache_implementation") == "paged":
            raise InvalidInputError(
                '`cache_implementation="paged"` (continuous batching) keeps no prompt to explain; leave it out.'
            )
        if option("token_healing"):
            raise InvalidInputError(
                "`token_healing` rewrites the prompt. Heal it first (`model.heal_tokens(input_ids, tokenizer)`), then explain."
            )
        if kwargs.get("adapter_names") is not None:
            raise InvalidInputError(
                "`adapter_names` gives each row an adapter of its own while `generate` runs, which the explanation cannot "
                "repeat. Explain the rows of one adapter at a time, after `model.set_adapter(name)`."
            )
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        _check_dimensions("the prompt", ids, 2, "token ids of shape [batch, P]", _ID_DTYPES)
        _check_dimensions("`inputs_embeds`", embeds, 3, "embeddings of shape [batch, P, E]")
        _check_dimensions("`attention_mask`", mask, 2, "a mask of shape [batch, P]")
        if mask is not None:
            check_left_padding(binary_mask("attention_mask", mask), mask.shape[1])
        self.ids, self.embeds, self.attention_mask = ids, embeds, mask
        #: Columns of the prompt in the returned sequences.
        self.prompt_ids_length = ids.shape[1] if ids is not None else int(embeds is None)
        if embeds is not None:
            self.prompt_length = embeds.shape[1]
        else:
            self.prompt_length = max(self.prompt_ids_length, mask.shape[1] if mask is not None else 0)
        if self.prompt_length == 0:
            raise InvalidInputError("The prompt is empty. Give it at least one token (a beginning-of-sequence token, say).")
        self.has_whole_prompt = embeds is not None or self.prompt_length == self.prompt_ids_length
        if mask is not None and (prompt := ids if embeds is None else embeds) is not None:
            _check_mask(mask, *prompt.shape[:2])
        placeholders = None if ids is None or ids.shape[1] == 0 else placeholder_mask(model, ids)
        if ids is not None:
            _check_vocabulary("The prompt", model, ids, placeholders)
        #: Whether the prompt is more than text.
        self.has_placeholders = placeholders is not None and bool(placeholders.any())
        if placeholders is not None and bool(placeholders[:, -1].any()):
            rows = placeholders[:, -1].nonzero().flatten().tolist()
            raise InvalidInputError(
                f"The prompt of row(s) {rows} ends in an image, a video or a sound. "
                "Put at least one token of text behind it, from which the first new token is predicted."
            )
        self._is_quantized = is_quantized(model)
        #: Whether each step of the generation is one call of the model, or can be told apart from other calls.
        self.is_plain_loop = kwargs.get("custom_generate") is None and (
            bool(option("use_cache", True)) or option("guidance_scale") in (None, 1)
        )
        self.returned_per_prompt = option("num_return_sequences") or 1
        self.returns_dict = bool(option("return_dict_in_generate"))
        self.eos_token_ids = eos_token_ids(option("eos_token_id"))
        self.pad_token_id = option("pad_token_id")
        #: Whether something else than an end-of-sequence token may end a row before the others.
        self.ends_rows = option("stop_strings") is not None or bool(kwargs.get("stopping_criteria"))
        if generation_config is None:
            self.generate_kwargs = {**kwargs, "return_dict_in_generate": True}
        else:
            generation_config = copy.deepcopy(generation_config)
            generation_config.return_dict_in_generate = True
            self.generate_kwargs = {**kwargs, "generation_config": generation_config}
            self.generate_kwargs.pop("return_dict_in_generate", None)
        self._row_ends = RowEnds(self.prompt_ids_length, self._room(model, kwargs, option))
        self.generate_kwargs["stopping_criteria"] = StoppingCriteriaList(
            [*(kwargs.get("stopping_criteria") or ()), self._row_ends]
        )

    def _room(self, model: "PreTrainedModel", kwargs: dict[str, Any], option: Callable[[str], Any]) -> PositionRoom:
        """For how many tokens the model knows positions.

        Raises:
            InvalidInputError: Not for as many as this call will need. Where a row may end before, that is not known yet.
        """
        mask, position_ids = self.attention_mask, kwargs.get("position_ids")
        if mask is None and self.ids is not None and self.pad_token_id not in (None, *self.eos_token_ids):
            mask = self.ids != self.pad_token_id  # as `generate` does
        length = self.prompt_length
        if isinstance(position_ids, Tensor) and position_ids.numel():
            length = int(position_ids.max()) + 1
        elif mask is not None and "position_ids" in forward_parameters(model):
            length = int((mask != 0).sum(-1).max())
        room = PositionRoom(model, length)
        num_steps, longest = option("max_new_tokens"), option("max_length")
        if not is_index(num_steps):
            num_steps = longest - self.prompt_ids_length if is_index(longest) else 1
        may_end = bool(self.eos_token_ids) or self.ends_rows or option("max_time") is not None
        reads_ahead = kwargs.get("assistant_model") is not None or any(map(option, _ASSISTED))
        room.check(1 if may_end and not reads_ahead else num_steps)
        return room

    def prompt_rows(self, num_rows: int, num_recorded: int) -> Tensor | None:
        """The recorded row with the prompt of each returned row; None where they correspond one to one."""
        if num_rows == num_recorded:
            return None
        num_prompts, rest = divmod(num_rows, self.returned_per_prompt)
        if rest or not num_prompts or num_recorded % num_prompts:
            raise InvalidInputError(
                f"`generate` read a prompt of {num_recorded} rows and returned {num_rows} sequences, "
                f"{self.returned_per_prompt} for each prompt: which belongs to which is not clear. Read all prompts in one "
                "call, and return as many for each."
            )
        return torch.arange(num_rows) // self.returned_per_prompt * (num_recorded // num_prompts)

    def sequences(self, generated: dict[str, Any], recording: PromptRecording, cache: Any) -> ExplainedSequences:
        """What was generated, on the prompt that was read; `cache` is the one that `generate` worked with, or None."""
        token_ids = generated["sequences"]
        if not recording.rows and token_ids.shape[1] > self.prompt_ids_length:
            raise InvalidInputError(
                "`generate` returned new tokens without calling the model that is to be explained, so they are not its own. "
                "Pass the model that `generate` runs."
            )
        rows = self.prompt_rows(token_ids.shape[0], recording.rows) if recording.rows else None
        self._check_prompt_returned(token_ids)

        def returned(x: Tensor, dim: int = 0) -> Tensor:
            """Of what was recorded, the rows that were returned."""
            return x if rows is None or x.shape[dim] == 1 else x.index_select(dim, rows.to(x.device))

        def copies(x: Tensor) -> Tensor:
            """Of a prompt for each sequence returned for it."""
            return x.repeat_interleave(token_ids.shape[0] // x.shape[0], dim=0)

        padding = recording.padding
        if padding is not None:
            padding = returned(padding)
        elif self.attention_mask is not None:
            padding = copies(self.attention_mask[:, : self.prompt_length])
        return extended_prompt(
            token_ids,
            self.prompt_length,
            token_ids.shape[1] - self.prompt_ids_length,
            self._step_mask(generated),
            padding,
            {name: returned(x, -2) for name, x in recording.per_position.items()},
            prompt_embeds=None if self.embeds is None else copies(self.embeds),
            forward_kwargs=recording.forward_kwargs,
            prefill_kwargs=recording.prefill_kwargs,
            prefill_rows=None if rows is None else _recorded_rows(rows, recording.rows),
            written_logits=self._written_logits(generated, recording, rows, cache),
        )

    def _written_logits(
        self, generated: dict[str, Any], recording: PromptRecording, prompt_rows: Tensor | None, cache: Any
    ) -> WrittenLogits | None:
        ids, beam_indices = generated["sequences"][:, self.prompt_ids_length :], generated.get("beam_indices")
        if beam_indices is not None and beam_indices.shape == ids.shape:
            rows = beam_indices.clamp_min(0)
        elif prompt_rows is None:
            rows = torch.arange(ids.shape[0])[:, None].expand(ids.shape)
        else:  # which beams these are was not returned; the first step is the same in all of a prompt
            rows = prompt_rows[:, None].expand(ids.shape)[:, :1]
        return recording.logits.written(cache, rows, recording.rows, self._is_quantized or is_quantized_cache(cache))

    def check_readable_again(self, recording: PromptRecording) -> None:
        """Raises InvalidInputError where the prompt is needed once more, and was not read from its start in one call."""
        if not self.has_whole_prompt:
            raise InvalidInputError(
                "The start of the prompt is only in `cache`, in a form that cannot be read back (a sliding window "
                "that has moved on, or a quantised or offloaded cache). Pass the token ids of the whole prompt."
            )
        by_position = sorted(set(recording.per_position) - {"position_ids"})
        if not recording.read_at_once and (self.has_placeholders or by_position):
            raise InvalidInputError(
                f"The prompt has to be read again, with {'what is not text in it' if self.has_placeholders else by_position}, "
                "because the cache that `generate` left cannot be read back (a sliding window that has moved on, or a "
                "quantised or offloaded cache). Let one call read all of it: leave `prefill_chunk_size` and "
                "`cache` out."
            )

    def _step_mask(self, generated: dict[str, Any]) -> Tensor:
        """As `generate` has decided it. Where that is not known, a row ends at an end-of-sequence token, or before padding."""
        ids = generated["sequences"][:, self.prompt_ids_length :]
        beam_indices = generated.get("beam_indices")
        if beam_indices is not None and beam_indices.shape == ids.shape:
            return (beam_indices >= 0).to(ids.device)  # -1 after a hypothesis' end
        decided = self._row_ends.step_mask(generated["sequences"])
        if decided is not None:
            return decided
        mask = until_end_of_sequence(ids, self.eos_token_ids)
        if self.ends_rows and self.pad_token_id is not None and self.pad_token_id not in self.eos_token_ids:
            padding_from_here = (ids == self.pad_token_id).flip(1).cumprod(1).flip(1).bool()
            mask = mask & ~padding_from_here
        return mask

    def _check_prompt_returned(self, token_ids: Tensor) -> None:
        rows = token_ids.shape[0]
        if self.ids is None or self.ids.shape[1] == 0 or (self.ids.shape[0] and rows % self.ids.shape[0]):
            return
        prompts = self.ids.repeat_interleave(rows // self.ids.shape[0], dim=0).to(token_ids.device)
        if not torch.equal(token_ids[:, : self.prompt_ids_length].to(prompts.dtype), prompts):
            raise InvalidInputError(
                "The sequences that `generate` returned do not start with the prompt, so what is new in them is not clear. A "
                "`custom_generate` function returns the prompt followed by the new tokens."
            )


def until_end_of_sequence(generated_ids: Tensor, end_ids: list[int]) -> Tensor:
    """Step mask `[R, N]`: False after the first end-of-sequence token of a row."""
    return _until(_is_one_of(generated_ids, end_ids))


def _until_padding(given_ids: Tensor, end_ids: list[int], padding_ids: list[int]) -> Tensor:
    """Step mask `[R, N]`: False after an end-of-sequence token that nothing but padding, or more such tokens, follow."""
    is_eos = _is_one_of(given_ids, end_ids)
    is_filling = is_eos | _is_one_of(given_ids, padding_ids)
    return _until(is_eos & is_filling.flip(1).cumprod(1).flip(1).bool())


def _until(is_last: Tensor) -> Tensor:
    """False after the first True of a row."""
    return is_last.cumsum(1) - is_last.long() == 0


def _is_one_of(token_ids: Tensor, known: list[int]) -> Tensor:
    return torch.isin(token_ids, torch.tensor(known, dtype=torch.long, device=token_ids.device))


def eos_token_ids(eos: int | list[int] | Tensor | None) -> list[int]:
    return [] if eos is None else torch.as_tensor(eos).flatten().tolist()


def given_sequences(
    model: "PreTrainedModel", sequences: Tensor, prompt_length: int, attention_mask: Tensor | None
) -> ExplainedSequences:
    """Text that already exists; arguments and errors as for `explain_sequences`."""
    _check_sequences(model, sequences, prompt_length, attention_mask)
    prompt_length = int(prompt_length)
    with torch.inference_mode(False):
        mask = None if attention_mask is None else binary_mask("attention_mask", attention_mask).to(sequences.device)
        padding = None if mask is None else mask[:, :prompt_length].long()
        check_left_padding(padding, prompt_length)
        if mask is not None and mask.shape[1] == sequences.shape[1]:
            step_mask = mask[:, prompt_length:]
            _check_rows_end_once(step_mask)
        else:
            ends = eos_token_ids(model.generation_config.eos_token_id)
            configs = (model.generation_config, model.config.get_text_config(decoder=True))
            pads = [config.pad_token_id for config in configs if getattr(config, "pad_token_id", None) is not None]
            step_mask = _until_padding(sequences[:, prompt_length:], ends, pads)
    longest = prompt_length
    if padding is not None and "position_ids" in forward_parameters(model):  # padding takes no position
        longest = int(padding.sum(-1).max())
    PositionRoom(model, longest).check(step_mask.shape[1])
    return extended_prompt(sequences, prompt_length, sequences.shape[1] - prompt_length, step_mask, padding)


def _check_sequences(model: "PreTrainedModel", sequences: Any, prompt_length: int, attention_mask: Any) -> None:
    if not isinstance(sequences, Tensor) or sequences.ndim != 2 or sequences.dtype not in _ID_DTYPES:
        raise InvalidInputError(f"`sequences` must be token ids of shape [R, S] (int64), got {_describe(sequences)}.")
    rows, length = sequences.shape
    if rows == 0:
        raise InvalidInputError("`sequences` has no rows; expected token ids of shape [R, S] with R of at least 1.")
    if not is_index(prompt_length) or not 1 <= prompt_length <= length:
        raise InvalidInputError(f"`prompt_length` must be an int from 1 to S = {length}, got {prompt_length!r}.")
    _check_vocabulary("`sequences`", model, sequences)
    placeholders = placeholder_mask(model, sequences[:, :prompt_length])
    if placeholders is not None and bool(placeholders.any()):
        raise InvalidInputError(
            "The prompts hold images, videos or sounds, which `explain_sequences` does not take. Use `explain_generate`."
        )
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor) or attention_mask.shape not in ((rows, length), (rows, prompt_length)):
        got = list(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise InvalidInputError(
            f"`attention_mask` must have shape [R, S] = {[rows, length]} or [R, P] = {[rows, prompt_length]}, got {got}."
        )


def _check_vocabulary(name: str, model: "PreTrainedModel", token_ids: Tensor, placeholders: Tensor | None = None) -> None:
    """Raises InvalidInputError where a token id is not the model's; one of an image, say, may lie beyond its vocabulary."""
    vocabulary = vocabulary_size(model)
    unknown = (token_ids < 0) | (token_ids >= vocabulary)
    if placeholders is not None:
        unknown &= ~placeholders
    if bool(unknown.any()):
        raise InvalidInputError(
            f"{name} holds the token id {token_ids[unknown][0]}, but the model has {vocabulary} tokens, from 0 to "
            f"{vocabulary - 1}. Use the model's own tokenizer."
        )


def _check_mask(mask: Tensor, rows: int, length: int) -> None:
    """Raises InvalidInputError where it has other rows than the prompt, or is shorter; the start may be in a cache."""
    if mask.shape[0] != rows or mask.shape[1] < length:
        raise InvalidInputError(
            f"`attention_mask` must have the shape of the prompt, [batch, P] = {[rows, length]} (and more columns where a "
            f"`cache` holds its start), got {list(mask.shape)}."
        )


def _check_rows_end_once(step_mask: Tensor) -> None:
    rows = (step_mask.int().diff(dim=1) > 0).any(1).nonzero().flatten().tolist()
    if rows:
        raise InvalidInputError(
            f"In the continuation of row(s) {rows}, `attention_mask` has a 1 behind a 0. There, 0 marks what comes after a "
            "row's end, which only more of it can follow. Put the 0s at the end."
        )


def _recorded_rows(prompt_rows: Tensor, num_recorded: int) -> tuple[Tensor, Tensor]:
    """A returned row with the prompt of each recorded row, and the recorded row with the prompt of each returned row."""
    return torch.searchsorted(prompt_rows, torch.arange(num_recorded), right=True) - 1, prompt_rows


def _check_dimensions(name: str, value: Any, dimensions: int, expected: str, dtypes: tuple[torch.dtype, ...] = ()) -> None:
    if value is None:
        return
    is_right = isinstance(value, Tensor) and value.ndim == dimensions and value.shape[0] > 0
    if is_right and value.dtype in (dtypes or (value.dtype,)):
        return
    expected += f" ({' or '.join(map(str, dtypes))})" if dtypes else ""
    hint = " Unpack what a tokenizer returns: `explain_generate(model, **inputs)`." if hasattr(value, "keys") else ""
    raise InvalidInputError(f"Expected {name} as {expected}, got {_describe(value)}.{hint}")


def _describe(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
