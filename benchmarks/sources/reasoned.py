"""Prompts with ten facts, and answers that first state the facts they need and then the result. Made up from lists of words."""

import random
from collections.abc import Callable
from dataclasses import dataclass


def _listed(words: str) -> list[str]:
    return words.split()


PEOPLE = _listed("Marta Paul Nina Oscar Helen Victor Clara Simon Laura Felix Julia Peter Emma Martin Alice Robert")
COLOURS = _listed("red blue green white black yellow brown grey golden silver")
ROOMS = _listed("library workshop garden kitchen archive cellar studio office chapel stable bakery attic")
PLACES = _listed("mill harbour station church market school bridge castle hospital theatre museum airport")
NUMBERS = range(2, 30)
NUM_PROMPTS = 8  # of each kind


@dataclass(frozen=True)
class Reasoned:
    """A prompt and its answer.

    Attributes:
        kind: `"keys"`, `"nearer"`, `"together"` or `"quote"`.
        facts: Ten sentences.
        needed: Which of them the result rests on.
        question: What is asked after them.
        reason: The beginning of the answer: it states the needed facts.
        result: What follows, of which it is asked what it rests on.
    """

    kind: str
    facts: list[str]
    needed: set[int]
    question: str
    reason: str
    result: str


def _keys(draw: random.Random) -> tuple[list[str], int, str, str, str]:
    people, colours, rooms = draw.sample(PEOPLE, 5), draw.sample(COLOURS, 5), draw.sample(ROOMS, 5)
    facts = [f"{person} has the {colour} key." for person, colour in zip(people, colours)]
    opens = [f"The {colour} key opens the {room}." for colour, room in zip(colours, rooms)]
    reason = f"{people[0]} has the {colours[0]} key. The {colours[0]} key opens the {rooms[0]}. So {people[0]} can open the"
    return [facts[0], opens[0], *facts[1:], *opens[1:]], 2, f"Which room can {people[0]} open?", reason, rooms[0]


def _nearer(draw: random.Random) -> tuple[list[str], int, str, str, str]:
    places, numbers = draw.sample(PLACES, 10), draw.sample(NUMBERS, 10)
    facts = [f"The {place} is {number} miles away." for place, number in zip(places, numbers)]
    near = places[0] if numbers[0] < numbers[1] else places[1]
    question = f"Which is nearer, the {places[0]} or the {places[1]}?"
    return facts, 2, question, f"{facts[0]} {facts[1]} So the nearer one is the", near


def _together(draw: random.Random) -> tuple[list[str], int, str, str, str]:
    people, numbers = draw.sample(PEOPLE, 10), draw.sample(NUMBERS, 10)
    facts = [f"{person} has {number} apples." for person, number in zip(people, numbers)]
    question = f"How many apples do {people[0]} and {people[1]} have together?"
    return facts, 2, question, f"{facts[0]} {facts[1]} So together they have", str(numbers[0] + numbers[1])


def _quote(draw: random.Random) -> tuple[list[str], int, str, str, str]:
    rooms, people = draw.sample(ROOMS, 10), draw.sample(PEOPLE, 10)
    facts = [f"The keeper of the {room} is {person}." for room, person in zip(rooms, people)]
    reason = f'The text says: "{facts[0]}" So the answer is'
    return facts, 1, f"Who is the keeper of the {rooms[0]}?", reason, people[0]


_KINDS: dict[str, Callable[[random.Random], tuple[list[str], int, str, str, str]]] = {
    "keys": _keys,
    "nearer": _nearer,
    "together": _together,
    "quote": _quote,
}


def prompts(split: str = "report") -> list[Reasoned]:
    """The same ones at each call.

    Args:
        split: `"tune"`: others, for choosing.
    """
    found = []
    for kind, make in _KINDS.items():
        for number in range(NUM_PROMPTS):
            draw = random.Random(f"{kind} {number}" + " tune" * (split == "tune"))
            facts, num_needed, question, reason, result = make(draw)
            order = draw.sample(range(len(facts)), len(facts))
            needed = {order.index(i) for i in range(num_needed)}
            found.append(Reasoned(kind, [facts[i] for i in order], needed, question, reason, f" {result}"))
    return found
