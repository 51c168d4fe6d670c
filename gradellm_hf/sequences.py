"""What the engines explain: sequences of prompt and generated tokens, and how to run a model over a stretch of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .architecture import forward_parameters, keeps_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ExplainedSequences:
    """Teacher-forced sequences of `P` prompt positions and `N` generated tokens, `S = P + N`.

    Attributes:
        token_ids: `[R, S]`, or `[R, N]` where the prompt was given as embeddings only.
        prompt_length: `P`, padding included.
        num_steps: `N`.
        per_position: Forward arguments with one entry a position, `[..., 1 or R, S]`: `position_ids` always, and
            `token_type_ids` where they were given.
        step_mask: False for steps after a row's end, `[R, N]`.
        attention_mask: 1 for real tokens, `[R, S]`; None where there is no padding.
        prompt_embeds: `[R, P, E]` where the prompt was given as embeddings.
        forward_kwargs: Further arguments of every forward call.
        prefill_kwargs: Further arguments of the call that reads the prompt.
    """

    token_ids: Tensor
    prompt_length: int
    num_steps: int
    per_position: dict[str, Tensor]
    step_mask: Tensor
    attention_mask: Tensor | None = None
    prompt_embeds: Tensor | None = None
    forward_kwargs: dict[str, Any] = field(default_factory=dict)
    prefill_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.prompt_length + self.num_steps

    @property
    def generated_ids(self) -> Tensor:
        """`[R, N]`."""
        return self.token_ids[:, self.token_ids.shape[1] - self.num_steps :]

    def step_chunks(self, size: int) -> Iterator[tuple[int, int]]:
        """Ranges of steps of at most `size`. A step that is predicted from an embedding stands alone."""
        first = 0
        while first < self.num_steps:
            last = min(first + (1 if self._is_embedded(self.prompt_length - 1 + first) else size), self.num_steps)
            yield first, last
            first = last

    def forward(self, model: "PreTrainedModel", first: int, last: int, cache: Any, **kwargs: Any) -> Any:
        """Runs the model over positions `first:last` on a cache that holds the positions before (None: there are none)."""
        inputs: dict[str, Any] = {**self.forward_kwargs, "return_dict": True}
        parameters = forward_parameters(model)
        if keeps_cache(model):
            inputs |= {"past_key_values": cache, "use_cache": True}
        elif "use_cache" in parameters:
            inputs["use_cache"] = False
        if self._is_embedded(first):
            inputs["inputs_embeds"] = self.prompt_embeds[:, first:last]  # type: ignore[index]
        else:
            offset = self.length - self.token_ids.shape[1]
            inputs["input_ids"] = self.token_ids[:, first - offset : last - offset]
        if self.attention_mask is not None:
            inputs["attention_mask"] = self.attention_mask[:, :last]
        inputs |= {name: x[..., first:last] for name, x in self.per_position.items() if name in parameters}
        return model(**inputs, **kwargs)

    def prefill(self, model: "PreTrainedModel") -> Any:
        """The cache of all positions before the one that predicts the first step; None where there are none, or no cache."""
        length = self.prompt_length - 1
        if length == 0 or not keeps_cache(model):
            return None
        kwargs = {"logits_to_keep": 1} if "logits_to_keep" in forward_parameters(model) else {}
        with torch.no_grad():
            return self.forward(model, 0, length, None, **kwargs, **self.prefill_kwargs).past_key_values

    def head(self, rows: int, num_steps: int) -> "ExplainedSequences":
        """The first `rows` rows, ending after `num_steps` generated tokens, every step of them to be explained."""
        removed = self.num_steps - num_steps

        def cut(x: Tensor) -> Tensor:
            return x[..., : rows if x.shape[-2] > 1 else 1, : self.length - removed]

        return replace(
            self,
            token_ids=self.token_ids[:rows, : self.token_ids.shape[1] - removed],
            num_steps=num_steps,
            per_position={name: cut(x) for name, x in self.per_position.items()},
            step_mask=torch.ones_like(self.step_mask[:rows, :num_steps]),
            attention_mask=None if self.attention_mask is None else self.attention_mask[:rows],
            prompt_embeds=None if self.prompt_embeds is None else self.prompt_embeds[:rows],
        )

    def _is_embedded(self, position: int) -> bool:
        return self.prompt_embeds is not None and position < self.prompt_length
