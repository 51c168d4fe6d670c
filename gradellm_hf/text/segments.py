"""What the parts of a text are: a chat's messages, tools and documents; thinking, calls and answer in what is written."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple, TypedDict

import regex

from ..checks.schema import Natural
from .chats import Chat


class Segment(TypedDict):
    """A stretch of a text, in characters: `text[start:end]`.

    A prompt's segments are what the user of a chat gave; the text between them is the template's.
    """

    name: str
    role: str
    start: Natural
    end: Natural


Unit = tuple[int, int]


class _Mark(NamedTuple):
    """A text of a chat that was replaced by a word that occurs nowhere else."""

    owner: tuple[str, str]
    text: str


_WORD = "GRADELLMMARK{}X"  # letters and digits only: no template trims, quotes or escapes it
_MARKED = regex.compile(r"GRADELLMMARK(\d+)X")
_NOT_TEXT = ("role", "type", "id", "tool_call_id")  # templates branch on these, and check them
_TAGS = r"(</?think>)"  # templates take an answer apart at these
#: What follows a tag of a model's text, up to the next one.
_FOLLOWS = {
    "<think>": "thinking",
    "</think>": "answer",
    "<tool_call>": "tool call",
    "</tool_call>": "answer",
    "[TOOL_CALLS]": "tool call",
}
_WRITTEN = regex.compile("|".join(map(regex.escape, _FOLLOWS)))


def chat_segments(
    tokenizer: Any, chat: Chat, rendered: str, options: Mapping[str, Any], placeholder: str | None = None
) -> list[Segment] | None:
    """Where the messages, tools and documents of a chat are in the text that the template made of it.

    The template is rendered a second time with a mark in the place of each text. What stands between the marks is the
    template's, and stands between the texts too.

    Args:
        tokenizer: What has the chat template.
        chat: The chat.
        rendered: What `apply_chat_template` returned for the chat.
        options: Its other arguments.
        placeholder: What stands for an image, if there are any: the texts before and behind one are two segments.

    Returns:
        In the order of the text. None if it cannot be told: the template looks into the texts and changes with them.
    """
    marks: list[_Mark] = []
    marked = dict(options)
    for kind in ("tools", "documents"):
        if options.get(kind):
            marked[kind] = [
                _marked(item, (_title(kind, item, number), kind.rstrip("s")), marks)
                for number, item in enumerate(options[kind], start=1)
            ]
    messages = [
        _marked(message, (f"{number}. {message['role']}", str(message["role"])), marks)
        for number, message in enumerate(chat, start=1)
    ]
    try:
        frame = str(tokenizer.apply_chat_template(messages, tokenize=False, **marked))
    except Exception:  # the template looked into a text, and did not find what it wants
        return None
    pieces = _MARKED.split(frame)
    return _joined(marks, _walk(rendered, pieces[::2], list(map(int, pieces[1::2])), marks), rendered, placeholder)


def placed(segments: Sequence[Segment], rendered: str, decoded: str) -> list[Segment] | None:
    """The same segments in the text of the tokens, which may have other white space; None if it differs in more."""
    visible = [i for i, character in enumerate(decoded) if not character.isspace()]
    if "".join(rendered.split()) != "".join(decoded.split()):
        return None
    before = [0]
    for character in rendered:
        before.append(before[-1] + (not character.isspace()))
    return [
        Segment(
            name=segment["name"],
            role=segment["role"],
            start=visible[before[segment["start"]]],
            end=visible[before[segment["end"]] - 1] + 1,
        )
        for segment in segments
        if before[segment["start"]] < before[segment["end"]]
    ]


def placed_around(
    segments: Sequence[Segment], rendered: str, decoded: str, places: Sequence[Unit], images: Sequence[Unit]
) -> list[Segment] | None:
    """The same segments in the text of the tokens, in which the processor has put longer ones in place of placeholders.

    What lies between two placeholders is looked for between the two images, where
    the processor may have written more before and behind each; that is as long everywhere, or else the place must be clear.

    Args:
        segments: In `rendered`, none with a placeholder inside.
        rendered: The text that the template wrote.
        decoded: The text of the tokens.
        places: Where `rendered` has its placeholders, from character to character.
        images: Where `decoded` has its images, one for each place.

    Returns:
        None if a text between two images cannot be found.
    """
    visible = [i for i, character in enumerate(decoded) if not character.isspace()]
    text = "".join(decoded[i] for i in visible)
    before = list(accumulate((not character.isspace() for character in rendered), initial=0))
    pieces = list(zip([0, *(end for _, end in places)], [*(start for start, _ in places), len(rendered)]))
    bounds = [bisect_left(visible, at) for image in images for at in image]
    gaps = list(zip([0, *bounds[1::2]], [*bounds[::2], len(text)]))
    sought = ["".join(rendered[start:end].split()) for start, end in pieces]
    first, last = text.find(sought[0], 0, gaps[0][1]), text.rfind(sought[-1], gaps[-1][0])
    if len(pieces) != len(gaps) or min(first, last) < 0:
        return None
    head, tail = gaps[0][1] - first - len(sought[0]), last - gaps[-1][0]
    starts = [first, *(_between(text, piece, gap, head, tail) for piece, gap in zip(sought[1:-1], gaps[1:-1])), last]
    found = []
    for segment in segments:
        piece = bisect_right([start for start, _ in pieces], segment["start"]) - 1
        shift, inner = starts[piece], [before[segment[edge]] - before[pieces[piece][0]] for edge in ("start", "end")]
        if shift is None:
            return None
        if inner[0] < inner[1]:
            start, end = visible[shift + inner[0]], visible[shift + inner[1] - 1] + 1
            found.append(Segment(name=segment["name"], role=segment["role"], start=start, end=end))
    return found


def _between(text: str, piece: str, gap: Unit, head: int, tail: int) -> int | None:
    """Where a piece of text begins between two images; None if that is not clear."""
    start, end = gap
    if text[start + tail : end - head] == piece:
        return start + tail
    found = text.find(piece, start, end)
    return found if piece and found >= 0 and text.find(piece, found + 1, end) < 0 else None


def written_segments(text: str, start: int) -> list[Segment]:
    """The segments of what a model wrote, `text[start:]`: thinking, tool calls, and the answer itself.

    Thinking is between `<think>` and `</think>`; the prompt may have opened it. Tags and white space are no segment.
    """
    tags = list(_WRITTEN.finditer(text, start))
    opened = text[:start].rstrip().endswith("<think>") or (tags and tags[0][0] == "</think>")
    names = ["thinking" if opened else "answer", *(_FOLLOWS[tag[0]] for tag in tags)]
    begins, ends = [start, *(tag.end() for tag in tags)], [*(tag.start() for tag in tags), len(text)]
    return [
        Segment(name=name, role="assistant", start=first, end=last)
        for name, *span in zip(names, begins, ends)
        for first, last in _visible(text, *span)
    ]


def _marked(value: Any, owner: tuple[str, str], marks: list[_Mark]) -> Any:
    """The value with marks in place of its texts, which are added to `marks`."""
    if isinstance(value, Mapping):
        return {name: item if name in _NOT_TEXT else _marked(item, owner, marks) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item, owner, marks) for item in value]
    if not isinstance(value, str):
        return value
    parts = regex.split(_TAGS, value)
    for at in range(0, len(parts), 2):
        if parts[at].strip():
            marks.append(_Mark(owner, parts[at]))
            parts[at] = _WORD.format(len(marks) - 1)
    return "".join(parts)


def _title(kind: str, item: Any, number: int) -> str:
    """The name of a tool or document."""
    if kind == "documents":
        return f"document: {item['title']}" if item.get("title") else f"document {number}"
    return f"tool: {item.get('function', item).get('name', number)}"


def _walk(text: str, frame: list[str], order: list[int], marks: list[_Mark]) -> list[tuple[int, int, int]] | None:
    """Which text of the chat is where: number of its mark, start and end; None if the frame is not that of this text."""
    if not text.startswith(frame[0]) or not text.endswith(frame[-1]):
        return None
    found, start = [], len(frame[0])
    for number, following in zip(order, [*frame[1:-1], None]):
        given = marks[number].text
        if following is None:
            end = len(text) - len(frame[-1])
        else:
            lengths = [len(form) for form in (given, given.strip()) if text.startswith(form + following, start)]
            end = start + lengths[0] if lengths else text.find(following, start)
        if end < start:
            return None
        found.append((number, start, end))
        start = end + len(following or "")
    return found


def _joined(
    marks: list[_Mark], found: list[tuple[int, int, int]] | None, text: str, placeholder: str | None
) -> list[Segment] | None:
    """One segment for neighbouring texts of the same message, tool or document, without white space around it.

    Texts with a placeholder between them are no neighbours.
    """
    if found is None:
        return None
    segments = []
    images = [0 if placeholder is None else text.count(placeholder, 0, start) for _, start, _ in found]
    for (owner, _), group in groupby(zip(found, images), key=lambda place: (marks[place[0][0]].owner, place[1])):
        places = [place for place, _ in group]
        for start, end in _visible(text, places[0][1], places[-1][2]):
            segments.append(Segment(name=owner[0], role=owner[1], start=start, end=end))
    return segments


def _visible(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The stretch without white space around it; nothing if there is nothing else."""
    stretch = text[start:end]
    inner = stretch.strip()
    first = start + len(stretch) - len(stretch.lstrip())
    return [(first, first + len(inner))] if inner else []
