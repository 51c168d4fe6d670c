"""What the engines explain: sequences of prompt and generated tokens, and how to run a model over a stretch of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..architecture.compat import cache_of
from ..architecture.facts import ModelFacts
from ..errors import UnsupportedArchitectureError
from .written_logits import WrittenLogits

#: By the decorators around its `forward`, if not by itself.
_TAKEN_BY_EVERY_MODEL = {"return_dict", "use_cache"}


@dataclass(frozen=True)
class ExplainedSequences:
    """Teacher-forced sequences of `P` prompt positions and `N` generated tokens, `S = P + N`.

    Attributes:
        token_ids: `[R, S]`, or `[R, N]` if the prompt was given as embeddings only.
        prompt_length: `P`, padding included.
        num_steps: `N`.
        per_position: Forward arguments with one entry per position, `[..., 1 or R, S]`: always `position_ids`, and
            `token_type_ids` if they were given.
        step_mask: True for steps to explain, `[R, N]`; False after a row's end, and for steps that were not asked for.
        attention_mask: 1 for real tokens, `[R, S]`; None if there is no padding.
        prompt_embeds: `[R, P, E]` if the prompt was given as embeddings.
        forward_kwargs: Further arguments of every forward call.
        prefill_kwargs: Further arguments of the call that reads the prompt.
        prefill_rows: Set if that call has other rows than these, such as one per beam. Two index vectors: for each row of the
            call, one of these rows with the same prompt; and for each of these rows, a row of the call with the same prompt.
        written_logits: The logits from which `generate` chose the tokens; None if they were not seen.
        first_step: The number of the first step in the whole text. It is above 0 if earlier steps count as prompt here.
        asked_steps: The steps to explain, ascending; in each row, those of them that `step_mask` has. None: all.
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
    prefill_rows: tuple[Tensor, Tensor] | None = None
    written_logits: WrittenLogits | None = None
    first_step: int = 0
    asked_steps: Sequence[int] | None = None

    @property
    def length(self) -> int:
        return self.prompt_length + self.num_steps

    @property
    def can_be_read_at_once(self) -> bool:
        """Whether one call can read the whole prompt of all rows."""
        is_whole = self.prompt_embeds is not None or self.token_ids.shape[1] == self.length
        return is_whole and not (self.prefill_kwargs and self.prefill_rows)

    @property
    def generated_ids(self) -> Tensor:
        """`[R, N]`."""
        return self.written_ids[:, self.first_step :]

    @property
    def written_ids(self) -> Tensor:
        """All generated tokens, also of steps that count as prompt here."""
        return self.token_ids[:, self.token_ids.shape[1] - self.first_step - self.num_steps :]

    @property
    def explained_steps(self) -> Sequence[int]:
        """`asked_steps`, or all."""
        return range(self.num_steps) if self.asked_steps is None else self.asked_steps

    def chunk_end(self, first: int, size: int) -> int:
        """The end of a chunk of at most `size` steps from `first` on. A step that is predicted from an embedding is alone."""
        predicted_from = self.prompt_length - 1 + first
        return min(first + (size if self._embeds_at(predicted_from) is None else 1), self.num_steps)

    def forward(self, facts: ModelFacts, first: int, last: int, cache: Any, **kwargs: Any) -> Any:
        """Runs the model over positions `first:last`. The cache holds the positions before; None: there are none."""
        inputs: dict[str, Any] = {**self.forward_kwargs, "return_dict": True}
        if facts.keeps_cache:
            inputs |= {facts.cache_argument: cache, "use_cache": True}
        elif "use_cache" in facts.parameters:
            inputs["use_cache"] = False
        prompt_embeds = self._embeds_at(first)
        if prompt_embeds is not None:
            inputs["inputs_embeds"] = prompt_embeds[:, first:last]
        else:
            offset = self.length - self.token_ids.shape[1]
            inputs["input_ids"] = self.token_ids[:, first - offset : last - offset]
        if self.attention_mask is not None:
            inputs["attention_mask"] = self.attention_mask[:, :last]
        if "cache_position" in facts.parameters:  # models outside of Transformers, written for its earlier versions
            inputs["cache_position"] = torch.arange(first, last, device=self.token_ids.device)
        inputs |= {name: x[..., first:last] for name, x in self.per_position.items() if name in facts.parameters}
        if lost := sorted(inputs.keys() - facts.parameters - _TAKEN_BY_EVERY_MODEL):
            raise UnsupportedArchitectureError(
                f"`{facts.model_type}` would have to be given {lost}, which its `forward` does not name: it takes "
                f"{sorted(facts.parameters)}. Among further keyword arguments they may get lost. Give it these parameters."
            )
        # as `generate` hands them on; models may rely on it (`view`)
        inputs = {name: x.contiguous() if isinstance(x, Tensor) else x for name, x in inputs.items()}
        return facts.model(**inputs, **kwargs)

    def read(self, facts: ModelFacts, first: int, last: int, cache: Any, **kwargs: Any) -> Any:
        """Reads positions `first:last` without gradients. Arguments as for `forward`; returns the cache that holds them too."""
        if "logits_to_keep" in facts.parameters:
            kwargs["logits_to_keep"] = 1
        with torch.no_grad():
            return cache_of(self.forward(facts, first, last, cache, **kwargs))

    def prefill(self, facts: ModelFacts) -> Any:
        """The cache of all positions before the one that predicts the first step; None if there are none, or no cache."""
        length = self.prompt_length - 1
        if length == 0 or not facts.keeps_cache:
            return None
        read_rows, cache_rows = self.prefill_rows if self.prefill_kwargs and self.prefill_rows else (None, None)
        prompts = self if read_rows is None else self._take(read_rows)
        cache = prompts.read(facts, 0, length, None, **self.prefill_kwargs)
        if cache_rows is not None:
            cache.batch_select_indices(cache_rows)
        return cache

    def after(self, num_steps: int) -> "ExplainedSequences":
        """The same with the first steps as part of the prompt, to be explained on a cache that holds them."""
        asked = self.asked_steps
        return replace(
            self,
            prompt_length=self.prompt_length + num_steps,
            num_steps=self.num_steps - num_steps,
            step_mask=self.step_mask[:, num_steps:],
            prompt_embeds=self.prompt_embeds if num_steps == 0 else None,
            written_logits=None if self.written_logits is None else self.written_logits.after(num_steps),
            first_step=self.first_step + num_steps,
            asked_steps=None if asked is None else [step - num_steps for step in asked if step >= num_steps],
        )

    def only(self, mask: Tensor, steps: Sequence[int]) -> "ExplainedSequences":
        """The same with fewer steps to explain: those of `mask` `[R, N]`, which is False but at `steps`."""
        return replace(self, step_mask=self.step_mask & mask, asked_steps=steps)

    def head(self, rows: int, num_steps: int) -> "ExplainedSequences":
        """The first `rows` rows, cut after `num_steps` generated tokens, with every step to be explained."""
        removed = self.num_steps - num_steps

        def cut(x: Tensor) -> Tensor:
            return x[..., : rows if x.shape[-2] > 1 else 1, : self.length - removed]

        return replace(
            self,
            token_ids=self.token_ids[:rows, : self.token_ids.shape[1] - removed],
            num_steps=num_steps,
            per_position={name: cut(x) for name, x in self.per_position.items()},
            step_mask=torch.ones_like(self.step_mask[:rows, :num_steps]),
            asked_steps=None,
            attention_mask=None if self.attention_mask is None else self.attention_mask[:rows],
            prompt_embeds=None if self.prompt_embeds is None else self.prompt_embeds[:rows],
            written_logits=None,
        )

    def _take(self, rows: Tensor) -> "ExplainedSequences":
        """Rows in any order, any number of times."""

        def take(x: Tensor, dim: int = 0) -> Tensor:
            one_for_all_rows = x.shape[dim] == 1 and self.token_ids.shape[0] > 1
            return x if one_for_all_rows else x.index_select(dim, rows.to(x.device))

        return replace(
            self,
            token_ids=take(self.token_ids),
            per_position={name: take(x, -2) for name, x in self.per_position.items()},
            step_mask=take(self.step_mask),
            attention_mask=None if self.attention_mask is None else take(self.attention_mask),
            prompt_embeds=None if self.prompt_embeds is None else take(self.prompt_embeds),
        )

    def _embeds_at(self, position: int) -> Tensor | None:
        """The prompt's embeddings, if they are what the model reads at a position."""
        return self.prompt_embeds if position < self.prompt_length else None


def extended_prompt(
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
        real = torch.ones_like(token_ids[:, :1]).expand(-1, prompt_length) if padding is None else padding.long()
        text_positions = (real.cumsum(-1) - 1).masked_fill(real == 0, 0)
        per_position.setdefault("position_ids", text_positions)
        ahead = torch.arange(1, num_steps + 1, device=token_ids.device)
        for name, known in per_position.items():
            if missing := prompt_length - known.shape[-1]:  # the calls that read these positions were not seen
                first = text_positions[:, :missing].to(known) if name == "position_ids" else known[..., :1]
                known = torch.cat([first.expand(*known.shape[:-1], missing), known], dim=-1)
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
            token_ids=_outside_inference_mode(token_ids).clamp_min(0),  # without a padding token, beams end in -1
            prompt_length=prompt_length,
            num_steps=num_steps,
            per_position=per_position,
            step_mask=_outside_inference_mode(step_mask),
            attention_mask=padding,
            prompt_embeds=None if prompt_embeds is None else _outside_inference_mode(prompt_embeds.detach()),
            **kwargs,
        )


def _outside_inference_mode(x: Tensor) -> Tensor:
    return x.clone() if x.is_inference() else x
