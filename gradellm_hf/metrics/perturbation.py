"""Runs a model on its text with parts of the prompt taken out, in batches over rows, random draws and methods."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..architecture.facts import look_at
from ..architecture.support import not_finite
from ..checks.arguments import binary_mask, whole_number
from ..configuration import GradELLMConfig
from ..errors import InvalidInputError
from ..sequences.given import given_sequences
from .shared_prefix import SharedPrefix, run

_WORTH_SHARING = 8  # a common prefix of at least this part of the text is not run again

Removal = Literal["zero", "mask", "drop"]


class Window(NamedTuple):
    """Generated tokens `first:last` that are predicted together. Everything before them is their context."""

    first: int
    last: int


class PerturbedText:
    """Teacher-forced text, of which parts of the prompt are taken out, while the generated tokens stay as they are.

    `R` rows, `P` prompt length, `N` generated tokens, `S = P + N`, `E` model width, `V` vocabulary.

    Args:
        model: A decoder-only Transformers model in evaluation mode.
        sequences: Token ids of prompts, padded on the left, and continuations, `[R, S]`.
        prompt_length: `P`.
        attention_mask: 0 for padding, `[R, P]` or `[R, S]`; in the continuation, 0 marks steps after a row's end.
        fixed: True for prompt positions that are never taken out (special tokens, say), `[P]` or `[R, P]`.
        keep_last: Never take out the last position of the prompt, from which the first token is predicted.
        batch_size: Texts per forward pass.

    Attributes:
        embeddings: Of all tokens, `[R, S, E]`.
        real: False for padding, `[R, S]`.
        removable: Prompt positions that may be taken out: real and not fixed, `[R, P]`.
        step_mask: False for steps after a row's end, `[R, N]`.
        unchanged: What was computed for the text as it is.

    Raises:
        InvalidInputError: An argument is not usable, nothing was generated, or a row has no removable position.
        UnsupportedArchitectureError: The model is not a decoder-only model.
    """

    def __init__(
        self,
        model: Any,
        sequences: Tensor,
        prompt_length: int,
        attention_mask: Tensor | None = None,
        *,
        fixed: Tensor | None = None,
        keep_last: bool = False,
        batch_size: int = 16,
    ):
        self.facts = look_at(model)
        self.model = self.facts.model
        text = given_sequences(self.facts, sequences, prompt_length, attention_mask)
        if text.num_steps == 0:
            raise InvalidInputError("`sequences` holds no token after the prompt, so there is nothing whose cause to measure.")
        batch_size = whole_number("batch_size", batch_size, 1)
        device = self.facts.input_device
        self.token_ids, self.step_mask = text.token_ids.to(device), text.step_mask.to(device)
        self.prompt_length, self.num_steps, self.batch_size = text.prompt_length, text.num_steps, batch_size
        self.real = torch.ones_like(self.token_ids, dtype=torch.bool)
        if text.attention_mask is not None:
            self.real = text.attention_mask.to(device) != 0
        self.removable = self.real[:, :prompt_length].clone()
        if fixed is not None:
            shapes = (self.removable.shape, self.removable.shape[1:])
            if not isinstance(fixed, Tensor) or fixed.shape not in shapes:
                raise InvalidInputError(
                    f"`fixed` must be a bool tensor of shape [P] or [R, P], one of {list(map(list, shapes))}."
                )
            self.removable &= ~binary_mask("fixed", fixed).to(device)
        if keep_last:
            self.removable[:, -1] = False
        if not bool(self.removable.any(dim=1).all()):
            raise InvalidInputError(
                "A row has no prompt position that may be taken out: all are padding, `fixed`, or the last."
            )
        with torch.inference_mode(False), torch.no_grad():
            self.embeddings: Tensor = self.model.get_input_embeddings()(self.token_ids)
        self._reference: dict[Window, Tensor] = {}
        read = (x[:, :-1] for x in (self.embeddings, self.real, self.position_ids))
        self.unchanged = SharedPrefix(self.facts, *read)

    @property
    def num_rows(self) -> int:
        return self.token_ids.shape[0]

    def log_probabilities(self, rows: Tensor, window: Window, keep: Tensor, removal: Removal = "zero") -> Tensor:
        """The model's next-token distributions at the tokens of a window.

        Args:
            rows: The text of each item of the batch, `[B]`.
            keep: The factors, from 0 to 1, for the embeddings of the first `K` positions: `[B, K]`, or `[B, K, E]` for each
                element. All other positions stay as they are.
            removal: How a position is taken out. `"zero"` multiplies its embedding by `keep`; `"mask"` hides it from
                attention; `"drop"` takes it out of the text. The last two need `keep [B, K]` of zeros and ones.

        Returns:
            `[B, last - first, V]`, float32 (float64 if the model is).

        Raises:
            InvalidInputError: The model produced NaN.
        """
        length, num_predicted = self.prompt_length + window.last - 1, window.last - window.first
        real, embeddings = self.real[rows, :length], self.embeddings[rows, :length]
        keep = keep[:, :length]
        unchanged = 0 if removal == "drop" else min(_equal_to_one(keep), length - num_predicted)
        if removal == "zero":
            kept = keep if keep.ndim == 3 else keep[..., None]
            embeddings = torch.cat(
                [embeddings[:, : keep.shape[1]] * kept.to(embeddings), embeddings[:, keep.shape[1] :]], dim=1
            )
            positions = _positions(real)
        else:
            positions = _positions(real)
            real = torch.cat([real[:, : keep.shape[1]] & (keep != 0), real[:, keep.shape[1] :]], dim=1)
            if removal == "drop":  # what is left moves to the right: the rest is padding
                order = real.int().argsort(dim=1, stable=True)
                embeddings = embeddings.gather(1, order[..., None].expand_as(embeddings))
                real = real.gather(1, order)
                positions = _positions(real)
        cache = self.unchanged.cache(rows, unchanged) if unchanged * _WORTH_SHARING >= length else None
        if cache is not None:
            embeddings, positions = embeddings[:, unchanged:], positions[:, unchanged:]
        with torch.no_grad():
            log_probabilities = self.forward(embeddings, real, positions, num_predicted, cache).log_softmax(-1)
        self.check_finite(log_probabilities.amax(-1))  # NaN if one of them is
        return log_probabilities

    def check_finite(self, values: Tensor) -> None:
        """Raises InvalidInputError if an output of the model is not finite."""
        if not bool(values.isfinite().all()):
            raise not_finite(self.model, GradELLMConfig())

    @property
    def position_ids(self) -> Tensor:
        """The positions of the unchanged text, `[R, S]`."""
        return _positions(self.real)

    def forward(self, embeddings: Tensor, real: Tensor, positions: Tensor, num_last: int, cache: Any = None) -> Tensor:
        """Raw logits of the last positions, `[B, num_last, V]`, in float32 or wider. Arguments as for `shared_prefix.run`."""
        logits: Tensor = run(self.facts, embeddings, real, positions, num_last, cache).logits[:, -num_last:]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def measure(
        self,
        rows: Tensor,
        window: Window,
        keep: Callable[[Tensor], Tensor],
        value: Callable[[Tensor, Tensor], Tensor],
        removal: Removal = "zero",
    ) -> Tensor:
        """Computes a number, or a tensor, for each of many perturbed texts, in batches.

        Args:
            rows: The row of each text, `[B]`.
            keep: From indices of texts, `[b]`, to their `keep` of `log_probabilities`.
            value: From the rows and the log-probabilities of a batch to its values, `[b, ...]`.

        Returns:
            `[B, ...]`.
        """
        return torch.cat(
            [
                value(rows[items], self.log_probabilities(rows[items], window, keep(items), removal))
                for items in torch.arange(len(rows), device=rows.device).split(self.batch_size)
            ]
        )

    def reference(self, window: Window) -> Tensor:
        """Log-probabilities of the unchanged text, `[R, last - first, V]`. Those of the last window are kept."""
        if window not in self._reference:
            rows = torch.arange(self.num_rows, device=self.token_ids.device)
            nothing = rows.new_ones(self.num_rows, 0)
            parts = [self.log_probabilities(r, window, nothing[r]) for r in rows.split(self.batch_size)]
            self._reference = {window: torch.cat(parts)}
        return self._reference[window]

    def distances(self, rows: Tensor, window: Window, keep: Callable[[Tensor], Tensor]) -> Tensor:
        """`Hd(p(X), p(X'))` of each of many perturbed texts, `[B]`; see `joint_hellinger`. Arguments as for `measure`."""
        return joint_hellinger(self.step_distances(rows, window, keep), self.step_mask[rows, window.first : window.last])

    def step_distances(self, rows: Tensor, window: Window, keep: Callable[[Tensor], Tensor]) -> Tensor:
        """The same of each token of the window, `[B, last - first]`; see `hellinger`."""
        reference = self.reference(window)
        return self.measure(rows, window, keep, lambda r, log_probabilities: hellinger(reference[r], log_probabilities))

    def leave_one_out(
        self, rows: Tensor, positions: Tensor, change: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Tensor:
        """What setting the embedding of one position to 0 changes in each generated token after it, `[B, N]`.

        Args:
            rows: The row of each text, `[B]`.
            positions: What is left out, `[B]`. Ascending positions are fastest: what comes before is not run again.
            change: From the rows and the log-probabilities of a batch to the changes, `[b, N]`; None: see `hellinger`.
        """
        columns = torch.arange(self.token_ids.shape[1] - 1, device=positions.device)
        window, reference = Window(0, self.num_steps), self.reference(Window(0, self.num_steps))
        change = change or (lambda r, log_probabilities: hellinger(reference[r], log_probabilities))
        changes = self.measure(rows, window, lambda items: columns != positions[items, None], change)
        before = torch.arange(self.prompt_length, self.token_ids.shape[1], device=positions.device)
        return changes.masked_fill(positions[:, None] >= before, 0)

    def target_log_probabilities(self, rows: Tensor, window: Window, kept: Tensor, removal: Removal) -> Tensor:
        """Log-probabilities of the generated tokens of a window. Texts that occur more than once are run once.

        Args:
            rows: The row of each text, `[B]`.
            kept: False for the prompt's positions that are taken out, `[B, P]`.

        Returns:
            `[B, last - first]`; of any value for steps after a row's end.
        """
        texts, inverse = torch.cat([rows[:, None], kept], dim=1).unique(dim=0, return_inverse=True)
        targets = self.token_ids[:, self.prompt_length :][:, window.first : window.last]

        def value(r: Tensor, log_probabilities: Tensor) -> Tensor:
            return log_probabilities.gather(-1, targets[r][..., None])[..., 0]

        return self.measure(texts[:, 0], window, lambda items: texts[items, 1:] != 0, value, removal)[inverse]


def hellinger(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Hellinger distance `||sqrt p - sqrt q||_2 / sqrt 2` of distributions over the last dimension; between 0 and 1.

    Args:
        log_p, log_q: Log-probabilities, `[..., V]`.

    Returns:
        `[...]`.

    Raises:
        RuntimeError: The shapes do not broadcast.

    Examples:
        >>> p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.0, 1.0]])
        >>> hellinger(p.log(), q.log())
        tensor([0., 1.])
    """
    distance: Tensor = ((log_p / 2).exp() - (log_q / 2).exp()).norm(dim=-1).div(2**0.5)
    return distance.clamp(max=1)


def joint_hellinger(distances: Tensor, valid: Tensor) -> Tensor:
    """Hellinger distance of the joint distribution of several tokens, per token; between 0 and 1.

    The affinity `1 - Hd^2` of a product of distributions is the product of their affinities. The geometric mean of the tokens'
    affinities is taken, so that not all long texts have the distance 1. For one token, it is the distance of that token.

    Args:
        distances: Of each token's distributions, given the tokens before it, `[B, N]`.
        valid: Which tokens count, `[B, N]`.

    Returns:
        `[B]`, float64.

    Raises:
        RuntimeError: The shapes do not broadcast.

    Examples:
        >>> joint_hellinger(torch.tensor([[0.3, 0.3, 0.9]]), torch.tensor([[True, True, False]]))
        tensor([0.3000], dtype=torch.float64)
    """
    return (-torch.expm1(masked_mean(torch.log1p(-distances.double().square()), valid))).clamp(0, 1).sqrt()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension of the elements for which `mask` is True."""
    return x.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)


def _positions(real: Tensor) -> Tensor:
    return (real.long().cumsum(1) - 1).clamp_min(0)


def _equal_to_one(keep: Tensor) -> int:
    """How many positions come before the first, of `keep [B, K]` or `[B, K, E]`, where some factor is not 1."""
    changed = (keep != 1).flatten(2).any(-1).any(0) if keep.ndim == 3 else (keep != 1).any(0)
    return int(changed.int().argmax()) if bool(changed.any()) else len(changed)
