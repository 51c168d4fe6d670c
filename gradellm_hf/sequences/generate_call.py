"""From the arguments of a call, and from what `generate` did with them, to the sequences that the engines explain."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteriaList

from ..architecture.caches import is_quantized_cache
from ..architecture.facts import ModelFacts
from ..checks.arguments import binary_mask, is_index
from ..errors import InvalidInputError
from .explained import ExplainedSequences, extended_prompt
from .positions import PositionRoom
from .prompt_checks import ID_DTYPES, check_dimensions, check_left_padding, check_mask, check_vocabulary, placeholder_mask
from .recording import PromptRecording
from .row_ends import RowEnds, eos_token_ids, until_end_of_sequence
from .written_logits import WrittenLogits

_ASSISTED = ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


class GenerateCall:
    """What must be known of a call of `generate` besides its result.

    Attributes:
        generate_kwargs: The arguments of the call, changed so that `generate` returns everything that it can return.
        returns_dict: Whether the caller asked for that too.
        prompt_length: `P`.
        has_whole_prompt: Whether ids or embeddings of the whole prompt were given. If not, its start is in `cache`.

    Raises:
        InvalidInputError: The prompt, or what is asked for, cannot be explained. Nothing has been generated then.
    """

    def __init__(self, facts: ModelFacts, inputs: Tensor | None, kwargs: dict[str, Any]):
        model, generation_config = facts.model, kwargs.get("generation_config")
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
        check_dimensions("the prompt", ids, 2, "token ids of shape [batch, P]", ID_DTYPES)
        check_dimensions("`inputs_embeds`", embeds, 3, "embeddings of shape [batch, P, E]")
        check_dimensions("`attention_mask`", mask, 2, "a mask of shape [batch, P]")
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
        prompt = ids if embeds is None else embeds
        if mask is not None and prompt is not None:
            check_mask(mask, *prompt.shape[:2])
        placeholders = None if ids is None or ids.shape[1] == 0 else placeholder_mask(facts, ids)
        if ids is not None:
            check_vocabulary("The prompt", facts, ids, placeholders)
        #: Whether the prompt holds more than text.
        self.has_placeholders = placeholders is not None and bool(placeholders.any())
        if placeholders is not None and bool(placeholders[:, -1].any()):
            rows = placeholders[:, -1].nonzero().flatten().tolist()
            raise InvalidInputError(
                f"The prompt of row(s) {rows} ends in an image, a video or a sound. "
                "Put at least one token of text behind it, from which the first new token is predicted."
            )
        self._is_quantized = facts.is_quantized
        #: Whether each step of the generation is one call of the model, or is told apart from other calls by its cache.
        self.is_plain_loop = kwargs.get("custom_generate") is None and (
            bool(option("use_cache", True)) or option("guidance_scale") in (None, 1)
        )
        self.returned_per_prompt = option("num_return_sequences") or 1
        self.returns_dict = bool(option("return_dict_in_generate"))
        self.eos_token_ids = eos_token_ids(option("eos_token_id"))
        self.pad_token_id = option("pad_token_id")
        #: Whether something other than an end-of-sequence token may end a row before the others.
        self.ends_rows = option("stop_strings") is not None or bool(kwargs.get("stopping_criteria"))
        if generation_config is None:
            self.generate_kwargs = {**kwargs, "return_dict_in_generate": True}
        else:
            generation_config = copy.deepcopy(generation_config)
            generation_config.return_dict_in_generate = True
            self.generate_kwargs = {**kwargs, "generation_config": generation_config}
            self.generate_kwargs.pop("return_dict_in_generate", None)
        self._row_ends = RowEnds(self.prompt_ids_length, self._room(facts, kwargs, option))
        self.generate_kwargs["stopping_criteria"] = StoppingCriteriaList(
            [*(kwargs.get("stopping_criteria") or ()), self._row_ends]
        )

    def _room(self, facts: ModelFacts, kwargs: dict[str, Any], option: Callable[[str], Any]) -> PositionRoom:
        """The positions that the model knows.

        Raises:
            InvalidInputError: They are fewer than this call will certainly need. If a row may end early, only its first new
                token is certain.
        """
        mask, position_ids = self.attention_mask, kwargs.get("position_ids")
        if mask is None and self.ids is not None and self.pad_token_id not in (None, *self.eos_token_ids):
            mask = self.ids != self.pad_token_id  # as `generate` does
        length = self.prompt_length
        if isinstance(position_ids, Tensor) and position_ids.numel():
            length = int(position_ids.max()) + 1
        elif mask is not None and "position_ids" in facts.parameters:
            length = int((mask != 0).sum(-1).max())
        room = PositionRoom(facts, length)
        num_steps, longest = option("max_new_tokens"), option("max_length")
        if not is_index(num_steps):
            num_steps = longest - self.prompt_ids_length if is_index(longest) else 1
        may_end = bool(self.eos_token_ids) or self.ends_rows or option("max_time") is not None
        reads_ahead = kwargs.get("assistant_model") is not None or any(map(option, _ASSISTED))
        room.check(1 if may_end and not reads_ahead else num_steps)
        return room

    def prompt_rows(self, num_rows: int, num_recorded: int) -> Tensor | None:
        """For each returned row, the recorded row with the same prompt, `[R]`; None if both are the same rows in one order.

        Args:
            num_rows: Number of rows that `generate` returned.
            num_recorded: Number of rows of the calls that read the prompt.

        Raises:
            InvalidInputError: The numbers do not say which row belongs to which prompt.
        """
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
        """What was generated, after the prompt as it was read.

        Args:
            generated: What `generate` returned, by name.
            recording: The calls that read the prompt.
            cache: The cache that `generate` used, or None.

        Raises:
            InvalidInputError: What was returned does not continue the prompt that was read.
        """
        token_ids = generated["sequences"]
        if not recording.rows and token_ids.shape[1] > self.prompt_ids_length:
            raise InvalidInputError(
                "`generate` returned new tokens without calling the model that is to be explained, so they are not its own. "
                "Pass the model that `generate` runs."
            )
        rows = self.prompt_rows(token_ids.shape[0], recording.rows) if recording.rows else None
        self._check_prompt_returned(token_ids)

        def returned(x: Tensor, dim: int = 0) -> Tensor:
            """From the recorded rows to the returned ones."""
            return x if rows is None or x.shape[dim] == 1 else x.index_select(dim, rows.to(x.device))

        def copies(x: Tensor) -> Tensor:
            """From one row per prompt to one row per returned sequence."""
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
            self.step_mask(generated),
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
        else:  # `generate` did not return which beams these are; in the first step all beams of a prompt are the same
            rows = prompt_rows[:, None].expand(ids.shape)[:, :1]
        return recording.logits.written(cache, rows, recording.rows, self._is_quantized or is_quantized_cache(cache))

    def wrote_in_place(self, generated: dict[str, Any]) -> bool:
        """Whether each returned row was written, from its prompt on, by the same row of the calls, and into their one cache."""
        beam_indices = generated.get("beam_indices")
        return self.is_plain_loop and beam_indices is None and self._row_ends.step_mask(generated["sequences"]) is not None

    def check_readable_again(self, recording: PromptRecording) -> None:
        """Called if the prompt must be read a second time: raises InvalidInputError if that is not possible.

        It is not if only a cache holds the start of the prompt. Nor if the prompt was read in several calls and is more than
        text (images, token types): which part of it belongs to which call is not known.
        """
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

    def step_mask(self, generated: dict[str, Any]) -> Tensor:
        """False for steps after a row's end, `[R, N]`, as `generate` decided it.

        If that is not known, a row ends with its first end-of-sequence token, or before the padding at its end.
        """
        ids: Tensor = generated["sequences"][:, self.prompt_ids_length :]
        beam_indices: Tensor | None = generated.get("beam_indices")
        if beam_indices is not None and beam_indices.shape == ids.shape:
            return (beam_indices >= 0).to(ids.device)  # -1 after a hypothesis' end
        decided = self._row_ends.step_mask(generated["sequences"])
        if decided is not None:
            return decided
        mask = until_end_of_sequence(ids, self.eos_token_ids)
        if self.ends_rows and self.pad_token_id is not None and self.pad_token_id not in self.eos_token_ids:
            padding_from_here = (ids == self.pad_token_id).flip(1).cumprod(1).flip(1).bool()
            padding_from_here[:, :1] = False  # a row has at least one token
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


def _recorded_rows(prompt_rows: Tensor, num_recorded: int) -> tuple[Tensor, Tensor]:
    """`ExplainedSequences.prefill_rows`: a returned row for each recorded one, and a recorded row for each returned one."""
    return torch.searchsorted(prompt_rows, torch.arange(num_recorded), right=True) - 1, prompt_rows
