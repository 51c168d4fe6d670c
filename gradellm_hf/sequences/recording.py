"""What `generate` fed the model: the prompt as `generate` prepared it, seen in the first forward calls."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..architecture.compat import CACHE_NAMES, cache_of, prompt_only_arguments
from ..architecture.facts import ModelFacts
from ..architecture.hooks import thread_hook
from .prompt_checks import check_left_padding
from .written_logits import LogitsRecording

_PER_POSITION = ("position_ids", "token_type_ids", "mm_token_type_ids")
_OURS = {
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "cache_position",
    *CACHE_NAMES,
    "use_cache",
    "return_dict",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    *_PER_POSITION,
}


class PromptRecording:
    """The arguments of the forward calls that read the prompt. There are several if `generate` prefills in chunks.

    Attributes:
        logits: What these calls, and those after them, predict from the last prompt position on.
        rows: Rows of those calls: batch times beams, or batch times returned sequences.
        cache: What these calls read the prompt into, given to them or made by the last of them; None where they keep none.
        padding: 1 for real tokens, `[rows, P]`; None if the calls do not show it.
        per_position: Arguments with one entry per position, by name, `[..., rows or 1, <= P]`. If the start of the prompt was
            in the cache before, they are those of its last positions.
        forward_kwargs: Arguments that every call gets.
        prefill_kwargs: Arguments that belong to the prompt as a whole, such as images.
    """

    def __init__(self, prompt_length: int, parameters: frozenset[str]):
        self._prompt_length = prompt_length
        self._parameters = parameters
        self.rows = 0
        self.cache: Any = None
        self.logits = LogitsRecording(prompt_length - 1)
        self.is_paused = False
        self._calls: list[dict[str, Any]] = []
        self._position = 0

    @property
    def read_at_once(self) -> bool:
        """Whether one call read the prompt from its start."""
        return len(self._calls) == 1 and self._first_position == 0

    @property
    def complete(self) -> bool:
        return self._position >= self._prompt_length

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the model's calls are not those of the generation."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def add(self, arguments: dict[str, Any]) -> None:
        """Takes in the arguments of a call; raises InvalidInputError if a row's prompt ends in padding."""
        self.cache = cache_of(arguments)
        if not self._calls:
            self._position = 0 if self.cache is None else int(self.cache.get_seq_length())
            self._first_position = self._position
        self.rows, num_positions = _inputs(arguments).shape[:2]
        self._position += num_positions
        self._calls.append(arguments)
        if self.complete:
            check_left_padding(self.padding, self._prompt_length)

    @property
    def padding(self) -> Tensor | None:
        given = self._calls[-1].get("attention_mask") if self._calls else None
        # There may be one mask per kind of layer; a token that is not padding sees itself in all of them.
        mask: Tensor | None = next(iter(given.values())) if isinstance(given, dict) else given
        if mask is None or (mask.ndim == 4 and self._first_position > 0):
            return None
        if mask.ndim == 4:
            own = mask[:, 0, : self._prompt_length, : self._prompt_length].diagonal(dim1=-2, dim2=-1)
            mask = own if own.dtype == torch.bool else own == 0
        return mask[:, : self._prompt_length].long()

    @property
    def per_position(self) -> dict[str, Tensor]:
        found = {}
        for name in _PER_POSITION:
            parts = [call[name][..., -_inputs(call).shape[1] :] for call in self._calls if call.get(name) is not None]
            if parts and len(parts) == len(self._calls):
                found[name] = torch.cat(parts, dim=-1)[..., : self._prompt_length - self._first_position]
        return found

    @property
    def forward_kwargs(self) -> dict[str, Any]:
        """Without what `generate` passes on although the model does not take it (a tokenizer, say)."""
        return {k: v for k, v in self._further.items() if k in self._parameters and not _belongs_to_prompt(k, v)}

    @property
    def prefill_kwargs(self) -> dict[str, Any]:
        return {name: value for name, value in self._further.items() if _belongs_to_prompt(name, value)}

    @property
    def _further(self) -> dict[str, Any]:
        arguments = self._calls[0] if self._calls else {}
        return {name: value for name, value in arguments.items() if name not in _OURS and value is not None}


def _inputs(arguments: dict[str, Any]) -> Tensor:
    """Token ids or embeddings, `[rows, positions, ...]`."""
    ids: Tensor | None = arguments.get("input_ids")
    inputs: Tensor = arguments["inputs_embeds"] if ids is None else ids
    return inputs


def _belongs_to_prompt(name: str, value: Any) -> bool:
    """Images, sound and the like: `generate` passes them on with the prompt only."""
    return isinstance(value, Tensor) or name in prompt_only_arguments()


@contextmanager
def record_prompt(facts: ModelFacts, prompt_length: int, decoding: bool = False) -> Iterator[PromptRecording]:
    """Watches the model's forward calls of this thread until the prompt of `prompt_length` positions has been read.

    Args:
        decoding: Whether to look at the logits of the calls after that too, unless these calls may be compiled.
    """
    model, recording = facts.model, PromptRecording(prompt_length, facts.parameters)
    num_layers = _num_layers(model)
    handles: list[RemovableHandle] = []

    def remove() -> None:
        for handle in handles:
            handle.remove()

    def is_draft() -> bool:
        """Whether this call writes a draft: with `assistant_early_exit`, the model does so with fewer of its own layers."""
        return _num_layers(model) != num_layers

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if recording.complete:
            handles[0].remove()  # this hook
        elif not is_draft():
            recording.add(_by_name(module, args, kwargs))

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        logits = getattr(output, "logits", None)
        if recording.complete and logits is not None and not (recording.is_paused or is_draft()):
            arguments, cache = _by_name(module, args, kwargs), cache_of(output)
            end = _inputs(arguments).shape[1] if cache is None else int(cache.get_seq_length())
            recording.logits.add(cache, end, logits)
            recording.cache = cache if recording.cache is None else recording.cache
            if not decoding or _may_be_compiled(model, cache):
                remove()  # decoding runs without hooks, and compiled decoding stays compiled

    try:
        handles.append(model.register_forward_pre_hook(thread_hook(before), with_kwargs=True))
        handles.append(model.register_forward_hook(thread_hook(after), with_kwargs=True))
        yield recording
    finally:
        remove()


def _may_be_compiled(model: nn.Module, cache: Any) -> bool:
    """Whether `generate` decodes with compiled modules: those of the user, or its own on a cache of fixed size."""
    from transformers import DynamicCache

    has_fixed_size = getattr(cache, "is_compileable", False) and not isinstance(cache, DynamicCache)
    return has_fixed_size or model._compiled_call_impl is not None


def _num_layers(model: nn.Module) -> int | None:
    count: int | None = getattr(model.config, "num_hidden_layers", None)
    return count


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    if not args:
        return kwargs
    arguments = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    return {**arguments.pop("kwargs", {}), **arguments}
