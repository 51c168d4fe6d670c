"""AT2: attention weights, with a weight for each head that is learned from ablations."""

from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import Tensor

from ..checks.arguments import checked_generator, choice, real_number, tensor, whole_number
from ..errors import InvalidInputError
from ..metrics.options import Scope
from ..metrics.perturbation import PerturbedText
from ..metrics.sources import Sources
from .attention import head_attention
from .registry import Method, heatmaps
from .surrogate import logit

_MOST_GRADIENT = 1.0  # its norm is cut off there, as in the paper's code


def at2(weights: Tensor) -> Method:
    """Attention weights of the position that predicts a token, added up over layers and heads with learned weights.

    Source: Cohen-Wang, Chuang & Madry 2025 (arXiv 2504.13752, "Learning to Attribute with Attention").

    Args:
        weights: Of each layer and head, `[L, H]`; see `learn_at2`. They may be negative.

    Returns:
        A method; see `Method`. It raises InvalidInputError if the model has other layers and heads.

    Raises:
        InvalidInputError: The weights are no finite tensor `[L, H]`.

    Examples:
        >>> heatmap = at2(torch.full((5, 6), 1 / 30))(model, out.sequences, out.prompt_length)
        >>> torch.allclose(heatmap, get_method("attention_mean")(model, out.sequences, out.prompt_length), atol=1e-6)
        True
    """
    if tensor("weights", weights).ndim != 2 or not bool(weights.isfinite().all()):
        raise InvalidInputError(f"`weights` must be finite and of shape [L, H], got {list(weights.shape)}.")

    def method(model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None, /) -> Tensor:
        text = PerturbedText(model, sequences, prompt_length, attention_mask)
        attention = head_attention(text)
        if attention.shape[1:3] != weights.shape:
            raise InvalidInputError(
                f"`weights` are of {list(weights.shape)} layers and heads, the model has {list(attention.shape[1:3])}."
            )
        return heatmaps(text, torch.einsum("rlhns,lh->rns", attention, weights.to(attention)))

    return method


def learn_at2(
    model: Any,
    texts: Iterable[tuple[Tensor, int, Tensor | None]],
    *,
    num_masks: int = 32,
    level: Scope = "sequence",
    num_steps: int = 1000,
    learning_rate: float = 1e-3,
    texts_per_step: int = 512,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Learns the weights of `at2`, by its published recipe.

    Random masks hide each source from attention with probability 1/2. The sum of a head's attention to the sources, times 1
    where they are kept and -1 where not, is a feature of the mask. The weights make the weighted sum of the features
    correlate, over the masks, with the logit of the probability of what was generated: Adam, a rate that falls as a cosine,
    from uniform weights, whose magnitudes are scaled to add up to 1 in the end.

    Args:
        model: A decoder-only Transformers model in evaluation mode.
        texts: Token ids of a prompt and the model's own continuation `[1, S]`, the length `P` of the prompt, and the number of
            the source of each of its tokens, `[P]`, as for `context_cite`; None: every token is one.
        num_masks: Masks per text, each a forward pass.
        level: What is predicted: `"sequence"`, all that was generated, or `"step"`, every token by itself.
        num_steps: Steps of the optimiser.
        learning_rate: Its rate in the beginning.
        texts_per_step: How many targets, drawn at random, a step sees; at most all.
        batch_size: Ablated texts per forward pass.
        generator: Source of randomness, on the CPU; None: one with seed 0.

    Returns:
        `[L, H]`, float32.

    Raises:
        InvalidInputError: An argument is not usable, or there is no text.
        UnsupportedArchitectureError: The model is not a decoder-only model, or does not return its attention weights.

    Examples:
        >>> weights = learn_at2(model, [(out.sequences, out.prompt_length, None)], num_masks=8, num_steps=3)
        >>> weights.shape  # [L, H]
        torch.Size([5, 6])
    """
    choice("level", level, get_args(Scope))
    num_masks, source = whole_number("num_masks", num_masks, 2), checked_generator(generator)
    num_steps = whole_number("num_steps", num_steps, 1)
    texts_per_step = whole_number("texts_per_step", texts_per_step, 1)
    learning_rate = real_number("learning_rate", learning_rate, "a number above 0", 0, open_ends=True)
    features: list[Tensor] = []
    outputs: list[Tensor] = []
    with torch.inference_mode(False):
        for sequences, prompt_length, sources in texts:
            text = PerturbedText(model, sequences, prompt_length, keep_last=True, batch_size=batch_size)
            x, y, shape = ablated(text, sources, num_masks, level, source)
            features.append(x.cpu())
            outputs.append(y.cpu())
        if not features:
            raise InvalidInputError("`texts` is empty: give at least one text to learn from.")
        weights = fit(torch.cat(features), torch.cat(outputs), num_steps, learning_rate, texts_per_step, source)
    by_head: Tensor = weights.unflatten(0, shape)
    return by_head


def fit(
    features: Tensor, outputs: Tensor, num_steps: int, learning_rate: float, per_step: int, generator: torch.Generator
) -> Tensor:
    """Weights `[F]` for which `features [T, K, F]` times them correlate with `outputs [T, K]`; their magnitudes add up to 1."""
    weights = torch.full((features.shape[-1],), 1 / features.shape[-1], dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps)
    for _ in range(num_steps):
        drawn = torch.randperm(len(features), generator=generator)[:per_step]
        with torch.enable_grad():
            loss = -_pearson(features[drawn] @ weights, outputs[drawn]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weights], _MOST_GRADIENT)
        optimizer.step()
        schedule.step()
    return weights.detach() / weights.detach().abs().sum()


def ablated(
    text: PerturbedText, sources: Tensor | None, num_masks: int, level: Scope, generator: torch.Generator
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Features `[T, K, L * H]` and logits `[T, K]` of the `T` targets of a text, and `(L, H)`."""
    known = Sources(text, sources, "mask")
    kept, found = (x[0] for x in known.random_ablations(num_masks, generator))
    attention = head_attention(text)[0, ..., : text.prompt_length].movedim(2, 0).float()  # [N, L, H, P]
    by_source = known.sums(attention, torch.zeros(1, dtype=torch.long, device=kept.device))
    if level == "sequence":
        by_source, found = by_source.mean(0, keepdim=True), found.sum(-1, keepdim=True)
    signs = 2 * kept.to(by_source) - 1
    layers, heads = by_source.shape[1:3]
    return torch.einsum("nlhg,kg->nklh", by_source, signs).flatten(2), logit(found).mT.to(by_source), (layers, heads)


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    """Correlation over the last dimension; 0 where either is constant."""
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    correlation: Tensor = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)).clamp_min(1e-8)
    return correlation
