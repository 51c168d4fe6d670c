"""Integrated gradients and DeepLift by captum: from a baseline of zero embeddings to the text."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..architecture.offloading import reload_offloaded_weights
from ..architecture.running import explainable
from ..architecture.switches import shared
from ..checks.arguments import choice, whole_number
from ..checks.optional import needed_for
from ..metrics.perturbation import PerturbedText
from .gradients import Predicted, predicted_targets
from .registry import heatmaps

_ACTIVATIONS = (nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.ReLU6)  # they act on each element alone, as captum's rule needs


def integrated_gradients(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    target: Predicted = "logit",
    num_points: int = 50,
    batch_size: int = 16,
) -> Tensor:
    """Integrated gradients from zero embeddings, with their sign. The sum of a step's scores approaches `f_n(X) - f_n(0)`.

    If a model's first norm divides by the size of the embedding, the model changes abruptly close to zero. Then the sum can be
    far off, even with hundreds of points. Compare it with the change of the target before you rely on it.

    Source: Sundararajan et al. 2017 (arXiv 1703.01365), by captum.

    Args:
        target: `f_n`: the raw logit, log-probability or probability of the generated token.
        num_points: Points on the path (Gauss-Legendre).
        batch_size: Texts per forward and backward pass.

    The other arguments and the return value, `[R, N, S]`, are as for `Method`.

    Raises:
        MissingDependencyError: captum is not installed.
        InvalidInputError, UnsupportedArchitectureError: As for `Method`.

    Examples:
        >>> integrated_gradients(model, out.sequences, out.prompt_length, num_points=8).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    num_points, batch_size = whole_number("num_points", num_points, 1), whole_number("batch_size", batch_size, 1)
    captum = _captum("integrated_gradients")
    text = PerturbedText(model, sequences, prompt_length, attention_mask)

    def attribute(target_module: nn.Module, embeddings: Tensor, *arguments: Tensor) -> Tensor:
        scores: Tensor = captum.IntegratedGradients(target_module).attribute(
            embeddings,
            torch.zeros_like(embeddings),
            additional_forward_args=arguments,
            n_steps=num_points,
            internal_batch_size=max(batch_size, len(embeddings)),
        )
        return scores

    return _each_step(text, target, attribute)


def deep_lift(
    model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None, *, target: Predicted = "logit"
) -> Tensor:
    """DeepLift (rescale rule) against zero embeddings, with its sign.

    The rule is applied to activation functions that are modules. In most models they are, in the feed-forward parts. Softmax
    and the products in attention, gates and norms are functions, not modules, and pass their ordinary gradient. So scores do
    not add up exactly.

    Arguments and return value, `[R, N, S]`, as for `integrated_gradients`.

    Source: Shrikumar et al. 2017 (arXiv 1704.02685), by captum.

    Raises:
        MissingDependencyError, InvalidInputError, UnsupportedArchitectureError: As for `integrated_gradients`.

    Examples:
        >>> deep_lift(model, out.sequences, out.prompt_length).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    captum = _captum("deep_lift")
    text = PerturbedText(model, sequences, prompt_length, attention_mask)

    def attribute(target_module: nn.Module, embeddings: Tensor, *arguments: Tensor) -> Tensor:
        with _rescaled_activations(text.model), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting forward, backward hooks", category=UserWarning)
            scores: Tensor = captum.DeepLift(target_module).attribute(
                embeddings, torch.zeros_like(embeddings), additional_forward_args=arguments
            )
            return scores

    return _each_step(text, target, attribute)


class _StepTarget(nn.Module):
    """`f_n` as a function of the embeddings of the positions before token `n`."""

    def __init__(self, text: PerturbedText, target: Predicted):
        super().__init__()
        self.model, self._text, self._target = text.model, text, target

    def forward(self, embeddings: Tensor, real: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
        logits = self._text.forward(embeddings, real, positions, 1)[:, 0]
        return predicted_targets(logits, token_ids, self._target)


def _each_step(text: PerturbedText, target: Predicted, attribute: Callable[..., Tensor]) -> Tensor:
    choice("target", target, get_args(Predicted))
    scores = text.embeddings.new_zeros(text.num_rows, text.num_steps, text.token_ids.shape[1])
    module = _StepTarget(text, target).eval()
    padded = not bool(text.real.all())
    with explainable(text.model, padded), reload_offloaded_weights(text.model), torch.enable_grad():
        for step in range(text.num_steps):
            length = text.prompt_length + step
            arguments = (text.real[:, :length], text.position_ids[:, :length], text.token_ids[:, length])
            embeddings = text.embeddings[:, :length].clone().requires_grad_()
            scores[:, step, :length] = attribute(module, embeddings, *arguments).detach().sum(-1)
    return heatmaps(text, scores)


@contextlib.contextmanager
def _rescaled_activations(model: nn.Module) -> Iterator[None]:
    """A context in which captum's table of rules also has the activation functions of the model."""
    from transformers.activations import ACT2CLS

    known = {cls for entry in ACT2CLS.values() if isinstance(cls := entry[0] if isinstance(entry, tuple) else entry, type)}
    known.update(_ACTIVATIONS)
    with contextlib.ExitStack() as stack:
        for cls in {type(m) for m in model.modules() if type(m) in known}:
            stack.enter_context(_rescaled(cls))
        yield


@shared
@contextlib.contextmanager
def _rescaled(activation: type) -> Iterator[None]:
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    lacking = activation not in SUPPORTED_NON_LINEAR
    SUPPORTED_NON_LINEAR.setdefault(activation, SUPPORTED_NON_LINEAR[nn.ReLU])
    try:
        yield
    finally:
        if lacking:
            del SUPPORTED_NON_LINEAR[activation]


def _captum(name: str) -> ModuleType:
    with needed_for(f"`{name}` needs", "captum"):
        import captum.attr
    return captum.attr
