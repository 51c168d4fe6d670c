"""Attention weights as explanations."""

from typing import Any

import torch
from torch import Tensor

from ..architecture.plain_attention import attention_implementation
from ..architecture.reading import forward_parameters
from ..architecture.running import explainable
from ..errors import UnsupportedArchitectureError
from ..metrics.perturbation import PerturbedText
from .registry import heatmaps


def attention_last(model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None) -> Tensor:
    """Attention weights of the position that predicts a token, in the last layer, mean over the heads.

    Arguments and return value, `[R, N, S]`, as for `Method`.

    Raises:
        InvalidInputError: As for `Method`.
        UnsupportedArchitectureError: As for `Method`, or the model does not return its attention weights.

    Examples:
        >>> attention_last(model, out.sequences, out.prompt_length).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    text = PerturbedText(model, sequences, prompt_length, attention_mask)
    return _of_predicting_positions(text, _attention_maps(text)[-1])


def attention_mean(model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None) -> Tensor:
    """Attention weights of the position that predicts a token, mean over layers and heads.

    Arguments and return value, `[R, N, S]`, as for `Method`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `attention_last`.

    Examples:
        >>> heatmap = attention_mean(model, out.sequences, out.prompt_length)
        >>> heatmap.sum(-1).round(decimals=3)  # the weights of each step add up to 1
        tensor([[1., 1., 1., 1.]])
    """
    text = PerturbedText(model, sequences, prompt_length, attention_mask)
    return _of_predicting_positions(text, torch.stack(_attention_maps(text)).mean(0))


def attention_rollout(model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None) -> Tensor:
    """Attention rollout: the product over the layers of `(A + I) / 2`, where `A` is the mean of the attention over heads.

    Arguments and return value, `[R, N, S]`, as for `Method`.

    Source: Abnar & Zuidema 2020 (ACL, "Quantifying Attention Flow in Transformers").

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `attention_last`.

    Examples:
        >>> attention_rollout(model, out.sequences, out.prompt_length).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    text = PerturbedText(model, sequences, prompt_length, attention_mask)
    maps = _attention_maps(text)
    identity = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    rollout = identity.expand_as(maps[0])
    for attention in maps:
        rollout = (attention + identity.to(attention)) @ rollout.to(attention) / 2
    return _of_predicting_positions(text, rollout)


def head_attention(text: PerturbedText) -> Tensor:
    """Attention weights of the positions that predict the generated tokens, of each layer and head, `[R, L, H, N, S - 1]`.

    Raises:
        UnsupportedArchitectureError: The model does not return its attention weights, or its layers differ in their heads.
    """
    layers = [weights[:, :, text.prompt_length - 1 :] for weights in _attention_weights(text)]
    if len({weights.shape[1] for weights in layers}) > 1:
        raise UnsupportedArchitectureError(f"The layers of `{text.model.config.model_type}` differ in their number of heads.")
    return torch.stack(layers, dim=1)


def _attention_maps(text: PerturbedText) -> list[Tensor]:
    """Attention weights of each layer, mean over its heads, `[R, S - 1, S - 1]`."""
    return [weights.mean(1) for weights in _attention_weights(text)]


def _attention_weights(text: PerturbedText) -> list[Tensor]:
    """Attention weights of each layer, `[R, H, S - 1, S - 1]`."""
    model, length = text.model, text.token_ids.shape[1] - 1
    optional = {"position_ids": text.position_ids[:, :length], "use_cache": False, "logits_to_keep": 1}
    kwargs: dict[str, Any] = {name: value for name, value in optional.items() if name in forward_parameters(model)}
    padded = not bool(text.real.all())
    with explainable(model, padded), torch.no_grad(), attention_implementation(model, "eager"):
        out = model(
            input_ids=text.token_ids[:, :length],
            attention_mask=text.real[:, :length].long(),
            output_attentions=True,
            return_dict=True,
            **kwargs,
        )
    layers = [weights for weights in getattr(out, "attentions", None) or () if weights is not None]
    if not layers or any(weights.shape[-2:] != (length, length) for weights in layers):
        raise UnsupportedArchitectureError(
            f"`{model.config.model_type}` does not return the attention weights of its tokens, which this method reads. "
            "Use a method that does not need them."
        )
    return layers


def _of_predicting_positions(text: PerturbedText, maps: Tensor) -> Tensor:
    return heatmaps(text, maps[:, text.prompt_length - 1 :])
