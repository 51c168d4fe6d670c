"""ContextCite: a sparse linear model of what random sources of the prompt are worth."""

from typing import Any

import torch
from torch import Tensor

from ..checks.arguments import checked_generator, real_number, whole_number
from ..metrics.perturbation import PerturbedText, Removal
from ..metrics.sources import Sources
from .registry import heatmaps

_MOST_ITERATIONS, _TOLERANCE = 10_000, 1e-9  # by hand: texts of hundreds of sources need hundreds of iterations


def context_cite(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    sources: Tensor | None = None,
    num_ablations: int = 32,
    alpha: float = 0.01,
    removal: Removal = "drop",
    generator: torch.Generator | None = None,
    batch_size: int = 16,
) -> Tensor:
    """ContextCite: LASSO coefficients of the sources, for the logit of the token's probability without random sources.

    Each source is kept with probability 1/2. All generated tokens share the forward passes. A source's coefficient is spread
    evenly over its tokens. The generated text before a token is no source, and scores 0.

    Source: Cohen-Wang et al. 2024 (arXiv 2409.00729).

    Args:
        sources: The number of the source (a sentence, say) of each prompt position, `[P]` or `[R, P]`; -1 for positions that
            always stay. None: every token. An evaluation gives the sentences.
        num_ablations: Random masks per row.
        alpha: Weight of the penalty on the coefficients of standardised masks.
        removal: `"drop"` takes sources out of the text, `"mask"` hides them from attention, `"zero"` sets their embeddings to
            0. The first two keep the prompt's last token.
        generator: Source of randomness, on the CPU; None: one with seed 0.
        batch_size: Texts per forward pass.

    The other arguments and the return value, `[R, N, S]`, are as for `Method`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `Method`.

    Examples:
        >>> sources = torch.arange(out.prompt_length) // 2  # pairs of tokens
        >>> context_cite(model, out.sequences, out.prompt_length, sources=sources).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """
    num_ablations = whole_number("num_ablations", num_ablations, 2)
    alpha = real_number("alpha", alpha, "a number above 0", 0, open_ends=True)
    keep_last, source = removal != "zero", checked_generator(generator)
    text = PerturbedText(model, sequences, prompt_length, attention_mask, keep_last=keep_last, batch_size=batch_size)
    known = Sources(text, sources, removal)
    kept, found = known.random_ablations(num_ablations, source)
    log_odds = logit(found.double())
    coefficients = torch.stack([_of_sources(*one, alpha) for one in zip(kept, known.present, log_odds)])  # [R, N, G]
    sizes = known.sums(torch.ones_like(known.source_of), torch.arange(text.num_rows, device=kept.device)).clamp_min(1)
    spread = torch.nn.functional.pad(coefficients / sizes[:, None], (0, 1))
    scores = spread.gather(-1, known.source_of[:, None].expand(-1, text.num_steps, -1))
    return heatmaps(text, torch.nn.functional.pad(scores, (0, text.num_steps - 1)))


def logit(log_probability: Tensor) -> Tensor:
    """`log(p / (1 - p))` of `log p`, finite also where `p` is 1."""
    tiny = torch.finfo(log_probability.dtype).tiny
    return log_probability - (-torch.expm1(log_probability)).clamp_min(tiny).log()


def lasso(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """`w` that makes `||y - x w||^2 / (2 K) + alpha ||w||_1` smallest, by accelerated proximal gradient steps with restarts.

    Source: Beck & Teboulle 2009 ("FISTA"); O'Donoghue & Candes 2015 (restarts).

    Args:
        x: `[K, G]`.
        y: `[K, N]`, for each of which there is a solution.

    Returns:
        `[G, N]`.
    """
    gram, target = x.mT @ x / len(x), x.mT @ y / len(x)
    step = 1 / torch.linalg.eigvalsh(gram)[-1].clamp_min(1e-12)
    w = ahead = torch.zeros_like(target)
    momentum = 1.0
    for _ in range(_MOST_ITERATIONS):
        moved = ahead - step * (gram @ ahead - target)
        new = moved.sign() * (moved.abs() - step * alpha).clamp_min(0)
        if bool(((ahead - new) * (new - w)).sum() > 0):
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / following * (new - w)
        change, w, momentum = (new - w).abs().max(), new, following
        if change <= _TOLERANCE * w.abs().max().clamp_min(1):
            break
    return w


def _of_sources(kept: Tensor, present: Tensor, log_odds: Tensor, alpha: float) -> Tensor:
    """Coefficients `[N, G]` of a row, from its masks `[K, G]` and `[K, N]`."""
    x = kept.to(log_odds) * present
    x = x - x.mean(0)
    deviation = x.square().mean(0).sqrt()
    deviation = torch.where(deviation > 0, deviation, 1)
    return (lasso(x / deviation, log_odds - log_odds.mean(0), alpha) / deviation[:, None]).mT
