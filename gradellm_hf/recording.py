"""What `generate` really fed the model: the prompt after its own preparation, read off the first forward calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .architecture import forward_parameters
from .errors import InvalidInputError
from .hooks import thread_hook

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PER_POSITION = ("position_ids", "token_type_ids", "mm_token_type_ids")
_OURS = {
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "past_key_values",
    "use_cache",
    "return_dict",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    *_PER_POSITION,
}


class PromptRecording:
    """The arguments of the forward calls that read the prompt; more than one where `generate` prefills in chunks.

    Attributes:
        rows: Rows of those calls: batch times beams, or batch times returned sequences.
        padding: 1 for real tokens, `[rows, P]`; None where it is not to be seen in the calls.
        per_position: Arguments with one entry a position, by name, `[..., rows or 1, P]`, where they cover the prompt.
        forward_kwargs: Arguments that every call gets.
        prefill_kwargs: Arguments that belong to the prompt as a whole, such as images.
    """

    def __init__(self, prompt_length: int, parameters: frozenset[str]):
        self._prompt_length = prompt_length
        self._parameters = parameters
        self.rows = 0
        self._calls: list[dict[str, Any]] = []
        self._position = 0

    @property
    def complete(self) -> bool:
        return self._position >= self._prompt_length

    def add(self, arguments: dict[str, Any]) -> None:
        """Raises InvalidInputError where a row's prompt ends in padding."""
        ids = arguments.get("input_ids")
        inputs = ids if ids is not None else arguments["inputs_embeds"]
        if not self._calls:
            cache = arguments.get("past_key_values")
            self._position = 0 if cache is None else int(cache.get_seq_length())
            self._first_position = self._position
        self.rows = inputs.shape[0]
        self._position += inputs.shape[1]
        self._calls.append(arguments)
        if self.complete:
            check_left_padding(self.padding, self._prompt_length)

    @property
    def padding(self) -> Tensor | None:
        mask = self._calls[-1].get("attention_mask") if self._calls else None
        if isinstance(mask, dict):  # one mask a kind of layer; a token that is not padding sees itself in all of them
            mask = next(iter(mask.values()))
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
            parts = [call[name] for call in self._calls if call.get(name) is not None]
            if parts and sum(part.shape[-1] for part in parts) >= self._prompt_length:
                found[name] = torch.cat(parts, dim=-1)[..., : self._prompt_length]
        return found

    @property
    def forward_kwargs(self) -> dict[str, Any]:
        """What `generate` passes on without being a parameter of the model (a tokenizer, say) is left out."""
        return {k: v for k, v in self._further.items() if k in self._parameters and not _belongs_to_prompt(k, v)}

    @property
    def prefill_kwargs(self) -> dict[str, Any]:
        return {name: value for name, value in self._further.items() if _belongs_to_prompt(name, value)}

    @property
    def _further(self) -> dict[str, Any]:
        arguments = self._calls[0] if self._calls else {}
        return {name: value for name, value in arguments.items() if name not in _OURS and value is not None}


def _belongs_to_prompt(name: str, value: Any) -> bool:
    """Images, sound and the like: `generate` passes them on with the prompt only."""
    from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

    return isinstance(value, Tensor) or name in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL


@contextmanager
def record_prompt(model: "PreTrainedModel", prompt_length: int) -> Iterator[PromptRecording]:
    """Watches the model's forward calls of this thread until the prompt of `prompt_length` positions has been read."""
    recording = PromptRecording(prompt_length, forward_parameters(model))

    def watch(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if not recording.complete:
            recording.add(kwargs)
            if recording.complete:
                handle.remove()  # decoding runs without a hook, and compiled decoding stays compiled

    handle = model.register_forward_pre_hook(thread_hook(watch), with_kwargs=True)
    try:
        yield recording
    finally:
        handle.remove()


def check_left_padding(mask: Tensor | None, prompt_length: int) -> None:
    """Raises InvalidInputError where the last prompt position of a row is padding."""
    if mask is None or mask.ndim != 2:
        return
    rows = (mask[:, min(prompt_length, mask.shape[1]) - 1] == 0).nonzero().flatten().tolist()
    if rows:
        raise InvalidInputError(
            f"The prompt of row(s) {rows} ends in padding, so there is no last token to predict from. Pad on the left: "
            '`tokenizer.padding_side = "left"`.'
        )
