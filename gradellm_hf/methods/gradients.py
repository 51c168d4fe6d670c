"""Methods that take the gradient of a token's target with respect to the input embeddings."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..architecture.offloading import reload_offloaded_weights
from ..architecture.running import explainable
from ..checks.arguments import choice
from ..metrics.perturbation import PerturbedText
from .registry import heatmaps

Predicted = Literal["logit", "log_probability", "probability"]


def saliency(
    model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None, *, target: Predicted = "logit"
) -> Tensor:
    """Norm of the gradient at each position's embedding, `||d f_n / d x_i||_2`.

    Source: Simonyan et al. 2014 (arXiv 1312.6034); for text Li et al. 2016 (NAACL).

    Args:
        target: `f_n`: the raw logit, log-probability or probability of the generated token.

    The other arguments and the return value, `[R, N, S]`, are as for `Method`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `Method`.

    Examples:
        >>> saliency(model, out.sequences, out.prompt_length, target="probability").shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    text = PerturbedText(model, sequences, prompt_length, attention_mask)
    return heatmaps(text, torch.stack([gradient.norm(dim=-1) for _, gradient in gradients(text, target)], dim=1))


def input_x_gradient(
    model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None, *, target: Predicted = "logit"
) -> Tensor:
    """Embedding times gradient, summed: `<x_i, d f_n / d x_i>`, with its sign.

    Arguments and return value, `[R, N, S]`, as for `saliency`.

    Source: Denil et al. 2015 (arXiv 1412.6815).

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `Method`.

    Examples:
        >>> heatmap = input_x_gradient(model, out.sequences, out.prompt_length)
        >>> heatmap.shape, bool((heatmap < 0).any())  # [R, N, S]
        (torch.Size([1, 4, 9]), True)
    """
    text = PerturbedText(model, sequences, prompt_length, attention_mask)
    return heatmaps(text, torch.stack([(x * gradient).sum(-1) for x, gradient in gradients(text, target)], dim=1))


def predicted_targets(logits: Tensor, token_ids: Tensor, target: Predicted) -> Tensor:
    """`f` of these tokens, `[...]`, from the logits that predict them, `[..., V]`.

    Raises:
        InvalidInputError: The target is unknown.
    """
    choice("target", target, get_args(Predicted))
    if target != "logit":
        logits = logits.log_softmax(-1)
    chosen = logits.gather(-1, token_ids[..., None])[..., 0]
    return chosen.exp() if target == "probability" else chosen


def gradients(
    text: PerturbedText, target: Predicted, around: AbstractContextManager[None] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step, the embeddings and the gradient at them, `[R, S - 1, E]`: one forward pass, one backward pass per step.

    Args:
        around: A context for the forward pass.
    """
    length = text.token_ids.shape[1] - 1
    with explainable(text.model, padded=not bool(text.real.all())):
        with torch.enable_grad(), reload_offloaded_weights(text.model):
            embeddings = text.embeddings[:, :length].clone().requires_grad_()
            with around or nullcontext():
                logits = text.forward(embeddings, text.real[:, :length], text.position_ids[:, :length], text.num_steps)
            values = predicted_targets(logits, text.token_ids[:, text.prompt_length :], target)
        for step in range(text.num_steps):
            (gradient,) = torch.autograd.grad(values[:, step].sum(), embeddings, retain_graph=True)
            yield embeddings.detach(), gradient
