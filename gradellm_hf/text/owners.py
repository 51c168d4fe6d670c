"""Which part of a text each token belongs to: a message, a document, the answer, or none."""

from collections.abc import Iterable
from itertools import accumulate, pairwise

from .readable import Tokenised
from .segments import Segment, written_segments


def segments_of(explanation: Tokenised) -> list[Segment]:
    """The segments of the whole text: those of the prompt, as far as they are known, its images, and those of the answer."""
    start = sum(map(len, explanation.tokens[: explanation.prompt_length]))
    return [*(explanation.segments or []), *_image_segments(explanation), *written_segments(explanation.text, start)]


def image_parts(explanation: Tokenised) -> range:
    """The numbers of the images in `segments_of`."""
    first = len(explanation.segments or [])
    return range(first, first + len(explanation.images or []))


def _image_segments(explanation: Tokenised) -> list[Segment]:
    bounds = list(accumulate(map(len, explanation.tokens), initial=0))
    return [
        Segment(name=f"image {number}", role="image", start=bounds[image.extent[0]], end=bounds[image.extent[-1] + 1])
        for number, image in enumerate(explanation.images or [], start=1)
    ]


def owners(explanation: Tokenised, spans: Iterable[tuple[int, int]]) -> list[int | None]:
    """Which of these stretches of the text, `(start, end)` in characters, each unit belongs to: the first that it overlaps.

    The space that a unit begins with counts little: a token of a space and a word belongs where the word is.
    """
    places = sorted(enumerate(spans), key=lambda place: place[1])
    found: list[int | None] = []
    first = 0
    for token, (start, end) in zip(explanation.tokens, pairwise(accumulate(map(len, explanation.tokens), initial=0))):
        if not token and found:  # it belongs to the character before
            found.append(found[-1])
            continue
        visible = start + len(token) - len(token.lstrip())
        start = visible if visible < end else start
        while first < len(places) and places[first][1][1] <= start:
            first += 1
        is_inside = first < len(places) and places[first][1][0] < max(end, start + 1)
        found.append(places[first][0] if is_inside else None)
    return found


def stretches(explanation: Tokenised) -> list[int | None]:
    """The part of the text that each unit belongs to, by its number in `segments_of`.

    None: in none of them, such as the template and the white space around an answer. A special token is a part of its own: it
    has a negative number. Those inside an image, such as the ends of its rows, belong to the image.
    """
    owner = owners(explanation, [(segment["start"], segment["end"]) for segment in segments_of(explanation)])
    found = [-1 - i if special else part for i, (special, part) in enumerate(zip(explanation.special, owner))]
    for number, image in zip(image_parts(explanation), explanation.images or []):
        found[image.extent.start : image.extent.stop] = [number] * len(image.extent)
    return found


def written_range(explanation: Tokenised) -> tuple[int, int] | None:
    """The units of the whole answer, without special tokens, tags and white space around it; None if there is nothing else."""
    border = explanation.prompt_length
    written = [i for i, part in enumerate(stretches(explanation)) if i >= border and part is not None and part >= 0]
    return (written[0], written[-1] + 1) if written else None
