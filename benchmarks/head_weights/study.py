"""`python -m benchmarks.head_weights.study FOLDER`: which features, gradients and ablations teach most.

FOLDER is what `benchmarks.head_weights.measure` wrote. Everything is judged on the kind of text that was held out: by the
effects of leaving one token out, per token that was written, and by what random masks of half of the prompt do to its logit. A
table goes to the standard output, AT2's weights to `--at2 FILE`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradellm_hf.calibration.fit import minimised, pearson
from gradellm_hf.methods.learned_attention import fit
from gradellm_hf.methods.surrogate import logit
from gradellm_hf.metrics.bootstrap import bootstrap
from gradellm_hf.metrics.ranks import spearman

_PULLS = (0.0, 0.0001, 0.0003, 0.001, 0.003, 0.01)
_FEWEST = 4  # sources of a token that is judged
_AT2_STEPS, _AT2_RATE, _AT2_TARGETS = 1000, 1e-3, 512  # as in its recipe
MEASURES = ("rank", "pearson", "lds")
REFERENCE = "magnitude"
_LEARNED = {
    "contribution": ("contribution",),
    "magnitude": ("magnitude",),
    "attention": ("attention",),
    "contribution and magnitude": ("contribution", "magnitude"),
    "all three": ("contribution", "magnitude", "attention"),
    "contribution, frozen norms": ("frozen-contribution",),
    "magnitude, frozen norms": ("frozen-magnitude",),
}


class Texts(NamedTuple):
    """All tokens that were written, `B` of them, with `K` sources that were left out and `M` masks.

    Attributes:
        tensors: By name as `measure` has them: features `[B, K, F]`, sums over what a mask hides `[B, M, F]`, and effects
            `[B, K]` and `[B, M]`.
        seen: Which sources count for each token, `[B, K]`.
        sinks: Which of them are sinks, `[B, K]`.
        text: The number of its text, `[B]`.
        fold: The number of its kind, `[B]`.
        kinds: Their names.
    """

    tensors: dict[str, Tensor]
    seen: Tensor
    sinks: Tensor
    text: Tensor
    fold: Tensor
    kinds: list[str]
    shape: tuple[int, int]


def read(folder: Path) -> Texts:
    """What was measured, without tokens that have too few sources or rest on none."""
    paths = sorted(folder.glob("*.safetensors"))
    kinds = sorted({path.stem.partition("-")[2] for path in paths})
    rows: dict[str, list[Tensor]] = {}
    for number, path in enumerate(paths):
        found = load_file(path)
        sources, before, is_sink = (found.pop(name) for name in ("sources", "before", "is_sink"))
        shape = found["magnitude"].shape[:2]
        found["seen"] = sources < before[:, None]
        found["sinks"] = is_sink.expand(len(before), -1)
        found["text"], found["fold"] = (torch.full_like(before, x) for x in (number, kinds.index(path.stem.partition("-")[2])))
        for name, x in found.items():
            rows.setdefault(name, []).append(x.flatten(0, 1).permute(1, 2, 0).float() if x.ndim == 4 else x)
    width = max(len(x[0]) for x in rows["seen"])
    tensors = {name: torch.cat([_padded(x, width) for x in parts]) for name, parts in rows.items()}
    seen = tensors["seen"].bool()
    usable = (seen.sum(-1) >= _FEWEST) & (tensors["effects"].masked_fill(~seen, 0).amax(-1) > 0)
    tensors = {name: x[usable] for name, x in tensors.items()}
    seen, sinks = (tensors.pop(name).bool() for name in ("seen", "sinks"))
    return Texts(tensors, seen, sinks, tensors.pop("text"), tensors.pop("fold"), kinds, tuple(shape))


def _padded(x: Tensor, width: int) -> Tensor:
    missing = width - x.shape[1] if x.ndim > 1 else 0
    return torch.nn.functional.pad(x, (0, 0, 0, missing) if x.ndim == 3 else (0, missing)) if missing else x


def judged(texts: Texts, names: tuple[str, ...], weights: Tensor | None = None) -> dict[str, Tensor]:
    """Mean of each measure over the tokens of each text, `[texts]`, with weights of the heads `[B, F]`; None: equal ones."""

    def scores(prefix: str) -> Tensor:
        x = torch.cat([texts.tensors[prefix + name] for name in names], dim=-1)
        return x.sum(-1) if weights is None else (x * weights[:, None]).sum(-1)

    one, masked = scores(""), scores("masked-")
    effects = texts.tensors["effects"]
    values = {
        "rank": spearman(one, effects, texts.seen),
        "pearson": pearson(one[..., None], effects[..., None], texts.seen)[:, 0],
        "lds": spearman(masked, texts.tensors["masked-effects"]),
    }
    return {name: _by_text(x, texts.text) for name, x in values.items()}


def learned(texts: Texts, names: tuple[str, ...], *, masks: bool = False) -> dict[str, Any]:
    """Weights with each pull: the values of the best one on held-out kinds, and which it was."""
    prefix = "masked-" if masks else ""
    x = torch.cat([texts.tensors[prefix + name] for name in names], dim=-1)
    seen = torch.ones(x.shape[:2], dtype=torch.bool) if masks else texts.seen
    sinks = torch.zeros_like(seen) if masks else texts.sinks
    x = x.masked_fill(~seen[..., None], 0)
    means = x.sum((0, 1)) / seen.sum()
    inverse = torch.where(means > 0, 1 / means, 0)
    weights = minimised(
        x * inverse,
        texts.tensors[f"{prefix}effects"],
        seen,
        sinks,
        texts.fold,
        len(texts.kinds),
        _PULLS,
        logarithms=not masks,
    )
    found = []
    for pull, of_pull in zip(_PULLS, weights.unbind(1)):
        values = judged(texts, names, (of_pull * inverse[:, None]).T[texts.fold])
        found.append({"pull": pull, **values})
    return max(found, key=lambda x: float(x["rank"].nanmean() + x["pearson"].nanmean()))


def at2_targets(texts: Texts) -> tuple[Tensor, Tensor, Tensor]:
    """Features `[T, M, F]`, logits `[T, M]` and kinds `[T]` of whole continuations, as AT2 learns from them."""
    log_probabilities = torch.nn.functional.logsigmoid(-texts.tensors["masked-effects"])
    of_text = [texts.text == number for number in texts.text.unique().tolist()]
    features = torch.stack([-texts.tensors["masked-attention"][rows].mean(0) for rows in of_text])
    outputs = torch.stack([logit(log_probabilities[rows].sum(0)) for rows in of_text])
    return features, outputs, torch.stack([texts.fold[rows][0] for rows in of_text])


def at2_weights(features: Tensor, outputs: Tensor) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return fit(features, outputs, _AT2_STEPS, _AT2_RATE, _AT2_TARGETS, source)


def at2(texts: Texts) -> dict[str, Any]:
    """AT2's recipe, without the kind that is judged."""
    features, outputs, kinds = at2_targets(texts)
    by_fold = [at2_weights(features[kinds != fold], outputs[kinds != fold]) for fold in range(len(texts.kinds))]
    return {"pull": None, **judged(texts, ("attention",), torch.stack(by_fold)[texts.fold])}


def rows(texts: Texts) -> dict[str, Callable[[], dict[str, Any]]]:
    """All that is compared, by name."""
    equal = {f"equal weights, {name}": (name,) for name in ("contribution", "magnitude", "attention")}
    equal |= {f"equal weights, {name[7:]}, frozen norms": (name,) for name in ("frozen-contribution", "frozen-magnitude")}
    return {
        **{name: lambda names=names: {"pull": None, **judged(texts, names)} for name, names in equal.items()},
        **{name: lambda names=names: learned(texts, names) for name, names in _LEARNED.items()},
        **{
            f"{name}, from random masks": lambda names=(name,): learned(texts, names, masks=True)
            for name in ("magnitude", "attention")
        },
        "AT2": lambda: at2(texts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at2", type=Path, help="where AT2's weights of all texts go")
    options = parser.parse_args()
    texts = read(options.folder)
    if options.at2:
        features, outputs, _ = at2_targets(texts)
        save_file({"weights": at2_weights(features, outputs).view(texts.shape)}, options.at2)
    found = {name: run() for name, run in rows(texts).items()}
    print(f"{len(texts.text.unique())} texts of {len(texts.kinds)} kinds, {len(texts.text)} tokens that were written.\n")
    print("| | pull | rank | Pearson | LDS |\n|---|---|---|---|---|")
    for name, row in found.items():
        cells = [_cell(row[measure], None if name == REFERENCE else found[REFERENCE][measure]) for measure in MEASURES]
        print(f"| {name} | {'' if row['pull'] is None else row['pull']} | " + " | ".join(cells) + " |")


def _cell(values: Tensor, reference: Tensor | None) -> str:
    text = f"{float(values.nanmean()):.3f}"
    if reference is None:
        return f"**{text}**"
    _, low, high = bootstrap(values - reference)
    return f"{text} [{float(low):+.3f}, {float(high):+.3f}]"


def _by_text(values: Tensor, text: Tensor) -> Tensor:
    return torch.stack([values[text == number].nanmean() for number in text.unique().tolist()])


if __name__ == "__main__":
    main()
