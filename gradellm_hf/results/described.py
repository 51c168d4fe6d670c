"""An explanation as values for other programs: JSON, text with numbers."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from ..checks.arguments import whole_number
from ..text.image_patches import ImagePatches
from ..text.readable import Readable, explained_rows
from ..text.shares import counted_scores, ignored_positions, kinds, shares
from .sources import Source


def described(explanation: Readable, top: int) -> dict[str, Any]:
    """See `Explanation.to_dict`."""
    top = whole_number("top", top, 0)
    border, tokens, scores = explanation.prompt_length, explanation.tokens, explanation.attributions
    bounds = list(accumulate(map(len, tokens), initial=0))
    offsets = [list(pair) for pair in pairwise(bounds)]
    share = shares(counted_scores(scores, ~ignored_positions(explanation)))
    names = explanation.unit_names or [None] * len(tokens)

    def source(step: int, i: int) -> dict[str, Any]:
        return {
            "position": i,
            "token": names[i] or tokens[i],
            "score": _rounded(scores[step, i].item()),
            "share": _rounded(share[step, i].item()),
            "start": bounds[i],
            "end": bounds[i + 1],
        }

    targets, rest = explanation.target_scores, explanation.rest
    strongest = share.abs().argsort(dim=-1, descending=True, stable=True)[:, :top].tolist()
    steps = [
        {
            "position": border + n,
            "token": tokens[border + n],
            "start": bounds[border + n],
            "end": bounds[border + n + 1],
            "probability": _rounded(explanation.token_probabilities[n].item()),
            "target_score": None if targets is None else _rounded(targets[n].item()),
            "strongest": [source(n, i) for i in strongest[n] if share[n, i] != 0],
            "attributions": [_rounded(score) for score in scores[n, : border + n].tolist()],
            "rest": None if rest is None else _rounded(rest.total[n].item()),
        }
        for n in explained_rows(explanation)
    ]
    return {
        "model": explanation.model_name,
        "text": explanation.text,
        "prompt": explanation.prompt,
        "answer": explanation.answer,
        "prompt_length": border,
        "foil": explanation.foil,
        "level": explanation.level,
        "tokens": tokens,
        "token_ids": explanation.token_ids,
        "names": explanation.unit_names,
        "offsets": offsets,
        "special": explanation.special,
        "kinds": kinds(explanation),
        "segments": explanation.segments,
        "images": None if explanation.images is None else [_image(image, bounds) for image in explanation.images],
        "layers": explanation.layers,
        "steps": steps,
    }


def _image(image: ImagePatches, bounds: list[int]) -> dict[str, Any]:
    return {
        "height": image.size[0],
        "width": image.size[1],
        "start": bounds[image.extent.start],
        "end": bounds[image.extent.stop],
        "positions": image.positions,
        "boxes": None if image.boxes is None else [[round(edge, 2) for edge in box] for box in image.boxes.tolist()],
    }


def highlighted(text: str, sources: Sequence[Source]) -> list[tuple[str, float | None]]:
    """See `Explanation.to_highlighted_text`."""
    pieces: list[tuple[str, float | None]] = []
    at = 0
    for source in sorted(sources, key=lambda source: source.start):
        pieces += [(text[at : source.start], None), (text[source.start : source.end], source.share)]
        at = source.end
    return [piece for piece in [*pieces, (text[at:], None)] if piece[0]]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
