"""Weights of heads that make heatmaps correlate with the effects of leaving tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInputError
from ..metrics.ranks import spearman
from .features import FEATURES

#: How strongly weights are pulled towards equal ones: one is chosen by cross-validation. The fewer texts, the stronger.
PULLS = (0.001, 0.003, 0.01, 0.03, 0.1)
# Chosen by hand. With SmolLM2, twice the steps or the rate, or a tenth or ten times the floor, change the held-out correlations
# by 0.001 at most.
_STEPS, _LEARNING_RATE = 150, 0.05
_FLOOR = 1e-3  # added to a score before its logarithm is taken, as a share of the mean
_FEWEST = 4  # sources of a token: with fewer, a correlation says nothing


@dataclass(frozen=True)
class Fitted:
    """Weights, and how well they do in texts that they were not fitted to.

    Attributes:
        values: `[L, H]`; on average over the heads, what they weight counts as much as without weights.
        feature: What they weight.
        report: `held_out`: correlations with the effects, before (as by default) and after; `by_fold`: the same for each fold;
            `candidates`: after, for each feature and pull.
    """

    values: Tensor
    feature: Any
    report: dict[str, Any]


def learn(texts: Sequence[dict[str, Tensor]], folds: Sequence[str], device: torch.device) -> Fitted:
    """Weights for the feature and the pull that do best when one fold after the other is held out.

    For each generated token, the weighted sum over the heads is correlated with the effects, over the sources. The loss is one
    minus the average of two of Pearson's correlations: of the numbers, and of their logarithms, for which small effects count,
    too. It is minimised over the logarithms of the weights.

    A sink decides the correlation of the numbers by itself. So this one is the mean of two, with and without it, and the
    logarithms are without it.

    Args:
        texts: What `measure` returned.
        folds: Which one each text belongs to.
        device: Where to compute.

    Raises:
        InvalidInputError: The texts are too short, or all belong to one fold.
    """
    names = sorted(set(folds))
    if len(names) < 2:
        raise InvalidInputError("All prompts are of one fold, so none can be held out.")
    effects = _by_token([text["effects"] for text in texts], device)[:, 0]
    seen = _by_token([text["sources"] < text["before"][:, None] for text in texts], device)[:, 0]
    sinks = _by_token([text["is_sink"].expand(len(text["before"]), -1) for text in texts], device)[:, 0]
    usable = (seen.sum(-1) >= _FEWEST) & (effects.masked_fill(~seen, 0).amax(-1) > 0)
    if not usable.any():
        raise InvalidInputError(
            f"No token that was written has {_FEWEST} sources that change it: give longer prompts, or more `num_sources`."
        )
    fold = torch.tensor([names.index(name) for text, name in zip(texts, folds) for _ in text["before"]], device=device)[usable]
    effects, seen, sinks = effects[usable], seen[usable], sinks[usable]

    def judged(scores: Tensor) -> dict[str, Tensor]:
        """Per token, `[B]`: rank correlation, and Pearson's."""
        return {"rank": spearman(scores, effects, seen), "pearson": pearson(scores[..., None], effects[..., None], seen)[:, 0]}

    candidates: list[tuple[float, str, float, Tensor, dict[str, Tensor]]] = []
    for feature in FEATURES:
        features = _by_token([text[feature].float() for text in texts], device)[usable].mT  # [B, K, F]
        features = features.masked_fill(~seen[..., None], 0)
        if feature == "contribution":
            before = judged(features.sum(-1))
        means = features.sum((0, 1)) / seen.sum()
        inverse = torch.where(means > 0, 1 / means, 0)
        weights = minimised(features * inverse, effects, seen, sinks, fold, len(names))  # [F, pulls, folds + 1]
        for pull, of_pull in zip(PULLS, weights.unbind(1)):
            held_out = torch.einsum("bkf,fb->bk", features * inverse, of_pull[:, fold])
            values = of_pull[:, -1] * inverse
            after = judged(held_out)
            merit = float(sum(x.nanmean() for x in after.values()) / 2)
            candidates.append((merit, feature, pull, values / values.mean(), after))
    _, feature, pull, values, after = max(candidates, key=lambda candidate: candidate[0])
    shape = texts[0][feature].shape[:2]
    report = {
        "feature": feature,
        "pull": pull,
        "held_out": {"before": _means(before), "after": _means(after)},
        "by_fold": {
            name: {"before": _means(before, fold == number), "after": _means(after, fold == number)}
            for number, name in enumerate(names)
        },
        "candidates": [{"feature": f, "pull": p, **_means(a)} for _, f, p, _, a in candidates],
    }
    return Fitted(values.view(shape).cpu(), feature, report)


def pearson(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Pearson's correlation over the sources that count, `[B, J]`, of `[B, K, J]` and `[B, K, J or 1]`; `mask [B, K]`.

    0 where one of both does not vary.
    """
    kept = mask[..., None].to(x)
    number = kept.sum(1, keepdim=True)
    x, y = ((z - (z * kept).sum(1, keepdim=True) / number) * kept for z in (x, y))
    product, size = (x * y).sum(1), x.norm(dim=1) * y.norm(dim=1)
    correlation: Tensor = product / size.clamp_min(torch.finfo(size.dtype).tiny)
    return correlation


def minimised(
    features: Tensor,
    effects: Tensor,
    seen: Tensor,
    sinks: Tensor,
    fold: Tensor,
    num_folds: int,
    pulls: Sequence[float] = PULLS,
    *,
    logarithms: bool = True,
) -> Tensor:
    """Weights `[F, pulls, folds + 1]`: with each pull, for each fold without it, and last for all of them. All at once.

    Args:
        features: `[B, K, F]`, of like means.
        effects: `[B, K]`.
        seen: Which of them count, `[B, K]`.
        sinks: Which of those are sinks, `[B, K]`.
        fold: Of each token, `[B]`.
        num_folds: How many there are.
        pulls: How strongly weights are pulled towards equal ones.
        logarithms: Whether logarithms count as much as numbers; for effects below 0 there are none.
    """
    heads = features.shape[-1]
    of_column = torch.tensor(pulls, device=features.device)[:, None].expand(-1, num_folds + 1).flatten()
    counts = (fold[:, None] != torch.arange(num_folds + 1, device=fold.device)).to(features)
    shares = (counts / counts.sum(0)).repeat(1, len(pulls))  # [B, pulls * (folds + 1)]
    target = effects[..., None]
    others = seen & ~sinks
    log_target = _logarithm(target, others) if logarithms else None
    theta = torch.zeros(heads, shares.shape[1], device=features.device, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=_LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(_STEPS):
            scores = (features.flatten(0, 1) @ theta.exp()).view(*features.shape[:2], -1)
            correlation = (pearson(scores, target, seen) + pearson(scores, target, others)) / 2
            if log_target is not None:
                correlation = (correlation + pearson(_logarithm(scores, others), log_target, others)) / 2
            loss = ((1 - correlation) * shares).sum(0) + of_column * theta.square().mean(0)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
    return theta.detach().exp().view(heads, len(pulls), num_folds + 1)


def _logarithm(x: Tensor, seen: Tensor) -> Tensor:
    mean = (x * seen[..., None]).sum(1, keepdim=True) / seen.sum(1)[:, None, None]
    return (x + _FLOOR * mean).clamp_min(torch.finfo(x.dtype).tiny).log()


def _by_token(by_text: Sequence[Tensor], device: torch.device) -> Tensor:
    """One entry per generated token of all texts, `[B, heads, K]`, of `[..., N, K]` each; 0 where a text has fewer sources."""
    width = max(x.shape[-1] for x in by_text)
    by_token = (x.reshape(-1, *x.shape[-2:]).transpose(0, 1) for x in by_text)
    return torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in by_token]).to(device)


def _means(values: dict[str, Tensor], where: Tensor | None = None) -> dict[str, float]:
    return {name: round(float((x if where is None else x[where]).nanmean()), 4) for name, x in values.items()}
