"""Sanity check of a method: scores that explain a model must change if its weights are randomised."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture.quantization import is_quantized
from ..checks.arguments import checked_generator, true_or_false
from ..errors import InvalidInputError
from .perturbation import PerturbedText
from .ranks import spearman


def weight_randomisation(
    model: Any,
    method: Callable[..., Tensor],
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    cascading: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rank correlation of a method's scores with those it gives when layers of the model have random weights.

    The weights of a layer are shuffled, each tensor by itself, from the last layer to the first. The model has its own weights
    again afterwards, also after an error. Meanwhile no other thread may use it. Correlations must fall: a method for which they
    stay near 1 does not depend on what the model has learned.

    Source: Adebayo et al. 2018 (NeurIPS, "Sanity Checks for Saliency Maps"). They draw new weights; shuffled ones keep
    their size.

    Args:
        model: A decoder-only Transformers model in evaluation mode.
        method: See `gradellm_hf.methods.Method`.
        sequences: Token ids of prompts, padded on the left, and continuations, `[R, S]`.
        prompt_length: `P`.
        attention_mask: 0 for padding, `[R, P]` or `[R, S]`; in the continuation, 0 marks steps after a row's end.
        cascading: Shuffled layers stay so while further ones are shuffled; a copy of all layers is kept. False: one at a time.
        generator: Source of randomness, on the CPU; None: one with seed 0.

    Returns:
        Spearman's correlation over the prompt's positions, mean over the generated tokens, `[L, R]`: the first row has the last
        layer shuffled. NaN where all scores are equal.

    Raises:
        InvalidInputError: An argument is not usable, or weights are quantised or not in memory.
        UnsupportedArchitectureError: The model is not a decoder-only model.

    Examples:
        >>> from gradellm_hf.methods import attention_mean
        >>> weight_randomisation(model, attention_mean, out.sequences, out.prompt_length).shape  # [L, R]
        torch.Size([5, 1])
    """
    true_or_false("cascading", cascading)
    if not callable(method):
        raise InvalidInputError(f"`method` must be a function from a text to its heatmaps, got {method!r}.")
    source = checked_generator(generator)
    text = PerturbedText(model, sequences, prompt_length, attention_mask)
    layers = _layers(text)

    def scores() -> Tensor:
        heatmap = method(model, sequences, prompt_length, attention_mask)
        return heatmap[..., :prompt_length].to(text.token_ids.device, torch.float64)

    original, correlations = scores(), []
    with contextlib.ExitStack() as stack:
        for layer in reversed(layers):
            if not cascading:
                stack.close()
            stack.enter_context(_shuffled(layer, source))
            correlation = spearman(original, scores(), text.removable[:, None])
            correlations.append(correlation.masked_fill(~text.step_mask, torch.nan).nanmean(-1))
    return torch.stack(correlations)


def _layers(text: PerturbedText) -> list[nn.Module]:
    """The decoder layers: the modules that hold the attention modules."""
    names = dict.fromkeys(name.rpartition(".")[0] for name in text.facts.layer_names)
    layers = [text.model.get_submodule(name) for name in names]
    if is_quantized(text.model) or any(weight.is_meta for layer in layers for weight in layer.parameters()):
        raise InvalidInputError(
            "Weights that are quantised or offloaded cannot be shuffled. Load the model without either, if it fits in memory."
        )
    return layers


@contextlib.contextmanager
def _shuffled(layer: nn.Module, source: torch.Generator) -> Iterator[None]:
    """A context in which the values of each weight of a layer are in a random order."""
    weights = [(weight, weight.detach().clone()) for weight in layer.parameters()]
    try:
        with torch.no_grad():
            for weight, value in weights:
                order = torch.randperm(value.numel(), generator=source).to(value.device)
                weight.copy_(value.flatten()[order].view_as(value))
        yield
    finally:
        with torch.no_grad():
            for weight, value in weights:
                weight.copy_(value)
