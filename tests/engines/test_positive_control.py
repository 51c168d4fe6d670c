"""The real model answers questions about short texts: its answer comes from the answer's place in the text.

The step explained is the one that writes the first token of the answer. Ranked are the content words of the user's message
and of the reply so far; the template's own text, punctuation and the stop words below are left aside. A word has the largest
weight of its tokens.
"""

import re
from itertools import accumulate
from typing import Any

import pytest
import torch

from gradellm_hf import ExplainGenerateOutput, GradELLMConfig, explain_generate

pytestmark = pytest.mark.slow

STOP_WORDS = frozenset(
    """
    a an and are as at be been by did do does for from had has have he her his how i in into is it its many much no not of on
    one or she that the their them there they this to was were what when where which who with s
    """.split()  # noqa: SIM905 - easier to read than a list
)
# Written before any heatmap was seen; two more were left out because the model answers them wrongly.
QUESTIONS = [
    (
        "The museum closes at nine on Fridays. On all other days it closes at six.",
        "At what time does the museum close on Fridays?",
        "nine",
    ),
    (
        "The captain hid the map inside a drum. The crew searched the whole ship and found nothing.",
        "Where did the captain hide the map?",
        "drum",
    ),
    (
        "Our neighbour Gustav repairs clocks. His wife teaches music at the school.",
        "What does Gustav repair?",
        "clocks",
    ),
    (
        "The expedition crossed the desert on camels. The way back took them three weeks.",
        "How did the expedition cross the desert?",
        "camels",
    ),
    (
        "The queen gave the young baker a golden spoon. He keeps it in his shop to this day.",
        "What did the queen give the young baker?",
        "spoon",
    ),
    (
        "The festival takes place in October. Last year more than a thousand people came.",
        "In which month does the festival take place?",
        "October",
    ),
    (
        "Ruth paints portraits of dogs. She sells them at the market in Bern.",
        "In which city does Ruth sell her portraits?",
        "Bern",
    ),
    (
        "The thief escaped through a window in the kitchen. The police arrived ten minutes later.",
        "Through what did the thief escape?",
        "window",
    ),
    (
        "Dr. Meyer studies whales. She spends every summer on a small boat near Iceland.",
        "Which animals does Dr. Meyer study?",
        "whales",
    ),
    (
        "The tower was destroyed by lightning. It was rebuilt two years later.",
        "What destroyed the tower?",
        "lightning",
    ),
]


def explain_answer(model: Any, tokenizer: Any, context: str, question: str, **options: Any) -> ExplainGenerateOutput:
    message = [{"role": "user", "content": f"{context}\n\n{question}"}]
    inputs = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return explain_generate(model, **inputs, max_new_tokens=24, do_sample=False, **options)


def rank_of_the_source(tokenizer: Any, out: ExplainGenerateOutput, answer: str) -> int:
    """The rank, from 1, of the answer's word in the user's message among all content words."""
    pieces = [tokenizer.decode([token]) for token in out.sequences[0].tolist()]
    text, ends = "".join(pieces), list(accumulate(map(len, pieces)))
    starts = [0, *ends[:-1]]
    message = text.index("<|im_start|>user\n") + len("<|im_start|>user\n")
    message_end, reply = text.index("<|im_end|>", message), starts[out.prompt_length]
    written = text.find(answer, reply)
    assert written >= 0, f"The model does not answer {answer!r} but {text[reply:]!r}."
    step = next(i for i, end in enumerate(ends) if end > written) - out.prompt_length
    weights: list[tuple[float, bool]] = []
    for word in re.finditer(r"[\w']+", text[:written]):
        first, last = word.span()
        if word.group().lower() in STOP_WORDS or not (message <= first < message_end or first >= reply):
            continue
        tokens = [i for i in range(len(pieces)) if starts[i] < last and ends[i] > first]
        is_source = word.group() == answer and first < message_end
        weights.append((out.attributions[0, step, tokens].max().item(), is_source))
    return 1 + [is_source for _, is_source in sorted(weights, reverse=True)].index(True)


def test_the_first_token_of_the_answer_looks_at_the_answer_in_the_text(smollm2, record_property):
    model, tokenizer = smollm2
    ranks = {}
    for context, question, answer in QUESTIONS:
        ranks[answer] = rank_of_the_source(tokenizer, explain_answer(model, tokenizer, context, question), answer)
    print(ranks)
    record_property("ranks", ranks)
    assert len(ranks) == 10
    assert sum(rank == 1 for rank in ranks.values()) >= 8, ranks


def test_without_the_explanation_there_is_nothing_to_see(smollm2):
    """The negative control: weights of a random heatmap put the answer first about once in as many words as there are."""
    model, tokenizer = smollm2
    generator = torch.Generator().manual_seed(0)
    first = 0
    for context, question, answer in QUESTIONS[:3]:
        out = explain_answer(model, tokenizer, context, question, explain_config=GradELLMConfig(layers=1))
        for _ in range(100):
            out.attributions = torch.rand(out.attributions.shape, generator=generator)
            first += rank_of_the_source(tokenizer, out, answer) == 1
    assert first < 60


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_a_wrong_name_put_into_the_text_changes_where_the_answer_comes_from(smollm2, engine):
    model, tokenizer = smollm2
    context, question, _ = QUESTIONS[6]
    for city in ("Bern", "Oslo"):
        config = GradELLMConfig(engine=engine)
        out = explain_answer(model, tokenizer, context.replace("Bern", city), question, explain_config=config)
        assert rank_of_the_source(tokenizer, out, city) == 1
