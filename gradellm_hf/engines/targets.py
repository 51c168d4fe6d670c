"""The scalars `f_n` that are explained, and their gradients with respect to the logits."""

from dataclasses import dataclass

import torch

from ..configuration import GradELLMConfig, TargetFunction, foil_ids
from ..errors import InvalidInputError

_LOGITS_AT_ONCE = 2**22  # 16 MiB in float32: memory that the allocator keeps, and need not ask for again


@dataclass(frozen=True)
class TargetValues:
    """Targets of a chunk of steps.

    Attributes:
        scores: `f_n`, `[R, N]`.
        probabilities: Softmax of the raw logits at the chosen token, `[R, N]`.
        gradient: `d f_n / d logits`, `[R, N, V]`, scaled to a largest magnitude of 1 per step: so small gradients, such as
            those of a probability, survive a backward pass in half precision.
        scale: The factor by which the gradient must be multiplied, `[R, N]`; 0 for steps that are not explained.
    """

    scores: torch.Tensor
    probabilities: torch.Tensor
    gradient: torch.Tensor
    scale: torch.Tensor


def evaluate_target(
    config: GradELLMConfig,
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    step_mask: torch.Tensor,
    contrast_token_ids: torch.Tensor | None = None,
) -> TargetValues:
    """Evaluates the target of each step and its gradient.

    Args:
        logits: Raw logits, `[R, N, V]`.
        token_ids: Chosen tokens, `[R, N]`.
        step_mask: False for steps that are not explained, `[R, N]`.
        contrast_token_ids: Foils of `target="contrast"`, `[R, N]`.

    Raises:
        InvalidInputError: A callable target returned something other than a differentiable `[R, N]` tensor.
    """
    with torch.enable_grad():
        leaf = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).requires_grad_()
        scores = _target_function(config, contrast_token_ids)(leaf, token_ids)
        _check_scores(scores, token_ids)
        (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    scores = scores.detach().masked_fill(~step_mask, 0)
    leaf = leaf.detach()
    probabilities = (_gather(leaf, token_ids) - _logsumexp(leaf)).exp().masked_fill(~step_mask, 0)
    largest = torch.maximum(gradient.amax(-1), -gradient.amin(-1))
    scale = torch.where(largest == 0, 1, largest).masked_fill(~step_mask, 0)
    gradient = gradient.contiguous()  # that of a sum is one number, seen as many
    gradient = gradient.div_(torch.where(step_mask, scale, torch.inf)[..., None])  # in place: it may be the largest tensor here
    return TargetValues(scores, probabilities, gradient, scale)


def contrast_ids(config: GradELLMConfig, token_ids: torch.Tensor, vocabulary_size: int) -> torch.Tensor | None:
    """The foils of `config` as `[R, N]`, or None.

    Raises:
        InvalidInputError: They are out of the vocabulary, or do not broadcast to the generated tokens' shape.
    """
    if config.contrast_token_ids is None:
        return None
    expected = f"token ids from 0 to {vocabulary_size - 1} that broadcast to [R, N] = {list(token_ids.shape)}"
    foils = foil_ids(config.contrast_token_ids).to(token_ids.device)
    if foils.numel() and foils.max() >= vocabulary_size:
        raise InvalidInputError(f"`contrast_token_ids` must be {expected}; got values up to {foils.max()}.")
    try:
        return foils.broadcast_to(token_ids.shape)
    except RuntimeError as error:
        raise InvalidInputError(f"`contrast_token_ids` has shape {list(foils.shape)}; expected {expected}.") from error


def check_contrast(foils: torch.Tensor, token_ids: torch.Tensor, step_mask: torch.Tensor, first_step: int = 0) -> None:
    """Refuses a foil that is the chosen token: the difference of their logits is 0, whatever the text.

    Args:
        foils, token_ids: `[R, N]`.
        step_mask: False for steps that are not explained, `[R, N]`; their foils do not count.
        first_step: The number of the first of these steps, for the error.

    Raises:
        InvalidInputError: A foil is the token that was chosen at its step.
    """
    same = ((foils == token_ids) & step_mask.to(foils.device)).nonzero()
    if len(same):
        row, step = same[0].tolist()
        raise InvalidInputError(
            f"The foil of step {first_step + step} in row {row} is the chosen token itself (id {int(foils[row, step])}), so "
            "there is nothing to contrast: the difference of their logits is 0. Give each step a foil that differs from its "
            "token, `contrast_token_ids` of shape [R, N]. If `generate` wrote the foil, the text is in the exception's "
            "`generated`: explain that by `explain_sequences` with such foils, or ask for fewer tokens."
        )


def _gather(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    return logits.gather(-1, token_ids[..., None])[..., 0]


def _logsumexp(logits: torch.Tensor) -> torch.Tensor:
    """`logsumexp` over the vocabulary, `[R, N]`, a few steps at a time: it copies what it is given."""
    parts = logits.split(max(1, _LOGITS_AT_ONCE // (logits.shape[0] * logits.shape[-1])), dim=1)
    return torch.cat([part.logsumexp(-1) for part in parts], dim=1)


def _target_function(config: GradELLMConfig, foils: torch.Tensor | None) -> TargetFunction:
    if callable(config.target):
        return config.target
    if config.target == "probability":
        return lambda logits, ids: _gather(logits.softmax(-1), ids)
    if config.target == "log_probability":
        return lambda logits, ids: _gather(logits.log_softmax(-1), ids)
    if config.target == "contrast" and foils is not None:
        return lambda logits, ids: _gather(logits, ids) - _gather(logits, foils)
    return _gather


def _check_scores(scores: torch.Tensor, token_ids: torch.Tensor) -> None:
    if not isinstance(scores, torch.Tensor):
        got = type(scores).__name__
    elif scores.shape != token_ids.shape:
        got = f"shape {list(scores.shape)}"
    elif not scores.requires_grad:
        got = "a tensor that does not depend on the logits (detached, or computed without gradients)"
    else:
        return
    raise InvalidInputError(
        "The callable `target` must map (logits [R, N, V], token_ids [R, N]) to a tensor of shape [R, N] = "
        f"{list(token_ids.shape)} that depends on the logits differentiably, got {got}."
    )
