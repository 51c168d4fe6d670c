"""Words, sentences and spans: whole units, whole sums."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradellm_hf import InvalidInputError
from gradellm_hf.text.splitting import BEGINS
from tests.support.readable import made_up

CHAT = ["<s>", "Sys", "tem", ".", " Be", " kind", ".", "\n", "What", " is", " it", "?", "<e>", "A", " dog", ".", " Yes", "!"]


def chat(**fields):
    special = [token in ("<s>", "<e>") for token in CHAT]
    return made_up(CHAT, 13, special=special, **fields)


def test_words_of_a_chat():
    words = chat().aggregate("word")
    assert words.tokens == [
        *["<s>", "System", ".", " Be", " kind", ".", "\n", "What", " is", " it", "?", "<e>"],
        *["A", " dog", ".", " Yes", "!"],
    ]
    assert (words.level, words.prompt_length, words.token_ids) == ("word", 12, None)
    assert [token for token, special in zip(words.tokens, words.special) if special] == ["<s>", "<e>"]


def test_sentences_of_a_chat():
    sentences = chat().aggregate("sentence")
    assert sentences.tokens == ["<s>", "System.", " Be kind.\n", "What is it?", "<e>", "A dog.", " Yes!"]
    assert sentences.prompt_length == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four… Five", ["One.", " Two!", " Three?", " Four…", " Five"]),
        ("Dr. Smith met J. R. Tolkien, e.g. in Rome. He left.", ["Dr. Smith met J. R. Tolkien, e.g. in Rome.", " He left."]),
        ("Pens, ink, etc. and paper. Fig. 3 shows them.", ["Pens, ink, etc. and paper.", " Fig. 3 shows them."]),
        ("1. Paris is old. So is Rome.\n2. Bonn", ["1. Paris is old.", " So is Rome.\n", "2. Bonn"]),
        ("No. It is not. See No. 5.", ["No.", " It is not.", " See No. 5."]),
        ("In 1999. Then", ["In 1999.", " Then"]),
        ("It costs 3.14 euros. Yes.", ["It costs 3.14 euros.", " Yes."]),
        ('He said "Stop." Then (he left.) So?!', ['He said "Stop."', " Then (he left.)", " So?!"]),
        ("我来了。你呢\uff1f「好\uff01」走", ["我来了。", "你呢\uff1f", "「好\uff01」", "走"]),
        ("كيف حالك؟ بخير", ["كيف حالك؟", " بخير"]),
        ("Title\n\nFirst line\nlast", ["Title\n\n", "First line\n", "last"]),
        ("x = a.b\r\n  y", ["x = a.b\r\n", "  y"]),
        ("\n\nA", ["\n\n", "A"]),
    ],
)
def test_where_sentences_end(text, expected):
    assert made_up(list(text), len(text)).aggregate("sentence").tokens == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("don't stop, l\u2019eau!", ["don't", " stop", ",", " l\u2019eau", "!"]),
        ("1,000.5 a,b", ["1,000.5", " a", ",", "b"]),
        ("def f(x_1):\n\n    return x", ["def", " f", "(", "x_1", "):", "\n\n", "    return", " x"]),
        ("北京 is これ", ["北", "京", " is", " これ"]),
        ("a  b \n", ["a", "  b", " \n"]),
    ],
)
def test_what_is_a_word(text, expected):
    assert made_up(list(text), len(text)).aggregate("word").tokens == expected


def test_paragraphs_end_at_empty_lines():
    text = "One.\nStill one.\n\nTwo.\n \n\nThree."
    assert made_up(list(text), len(text)).aggregate("paragraph").tokens == ["One.\nStill one.\n\n", "Two.\n \n\n", "Three."]


@pytest.mark.parametrize("text", ["A. ", "Dr. ", "1. ", " \n", ". ", "a", "\n "])
def test_long_runs_are_split_in_linear_time(text):
    assert len(BEGINS["sentence"](text * 20000)) <= 40001


def test_a_token_that_holds_a_border_joins_its_neighbours():
    assert made_up(["One t", "wo", " three f", "our"], 4).aggregate("word").tokens == ["One two", " three four"]
    explanation = made_up(["One", ". T", "wo", " three", ". F", "our"], 6)
    assert explanation.aggregate("word").tokens == ["One", ". Two", " three", ". Four"]


def test_a_word_is_cut_at_the_border_of_the_prompt():
    explanation = made_up(["The", " Ro", "me", " is"], 2)
    assert explanation.units("word") == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert explanation.units("sentence") == [(0, 2), (2, 4)]


def test_tokens_that_share_a_character_are_one_unit():
    explanation = made_up(["a", "é", "", "", "b", "\u4f60", ""], 4)
    assert explanation.units("token") == [(0, 1), (1, 4), (4, 5), (5, 7)]
    assert explanation.aggregate("token").tokens == ["a", "é", "b", "\u4f60"]


def test_prompt_and_answer_may_have_different_units():
    mixed = chat().aggregate("sentence", generated="word")
    assert mixed.tokens[mixed.prompt_length :] == ["A", " dog", ".", " Yes", "!"]
    assert mixed.tokens[: mixed.prompt_length] == chat().aggregate("sentence").tokens[:5]


@given(
    st.lists(st.text(alphabet="aé ,.\n'1你!", max_size=4), min_size=2, max_size=25).flatmap(
        lambda tokens: st.tuples(st.just(tokens), st.integers(1, len(tokens)), st.sets(st.integers(0, len(tokens) - 1)))
    ),
    st.sampled_from(["token", "word", "sentence"]),
)
def test_units_cover_the_sequence_and_sums_are_kept(case, level):
    tokens, prompt_length, special = case
    explanation = made_up(tokens, prompt_length, special=[i in special for i in range(len(tokens))])
    units = explanation.units(level)
    assert [i for start, end in units for i in range(start, end)] == list(range(len(tokens)))
    assert all(end <= prompt_length or start >= prompt_length for start, end in units)
    assert all((i, i + 1) in units for i in special)
    larger = explanation.aggregate(level, ignore=())
    assert larger.text == explanation.text
    prompt_units = [unit for unit in units if unit[1] <= prompt_length]
    assert larger.prompt_length == len(prompt_units)
    for n, (first, last) in enumerate(units[len(prompt_units) :]):
        steps = slice(first - prompt_length, last - prompt_length)
        for i, (start, end) in enumerate(units):
            torch.testing.assert_close(larger.attributions[n, i], explanation.attributions[steps, start:end].sum())
        torch.testing.assert_close(larger.target_scores[n], explanation.target_scores[steps].sum())
        torch.testing.assert_close(larger.token_probabilities[n], explanation.token_probabilities[steps].prod())
    torch.testing.assert_close(larger.layer_attributions.sum(0), larger.attributions)


def test_without_layers_and_target_scores_there_are_none_afterwards():
    larger = chat(layer_attributions=None, target_scores=None).aggregate("word")
    assert larger.layer_attributions is None
    assert larger.target_scores is None


def test_words_can_be_made_into_sentences():
    words, direct = chat().aggregate("word"), chat().aggregate("sentence")
    again = words.aggregate("sentence")
    assert again.tokens == direct.tokens
    torch.testing.assert_close(again.attributions, direct.attributions)


@pytest.mark.parametrize(
    "spans", [{"system": (3, 13), "question": "What is it?"}, {"question": (20, 31), "system": "System. Be"}], ids=str
)
def test_named_spans_and_the_rest(spans):
    explanation = chat().aggregate(spans)
    assert explanation.tokens[:6] == ["<s>", "System. Be", " kind.\n", "What is it?", "<e>", "A"]
    assert explanation.unit_names[:6] == [None, "system", None, "question", None, None]
    assert explanation.level == "span"
    assert explanation.tokens[explanation.prompt_length :] == CHAT[13:]
    torch.testing.assert_close(explanation.attributions[0, 1], chat().attributions[0, 1:5].sum())


def test_special_tokens_between_spans_stay_apart():
    explanation = chat().aggregate({"question": "What"})
    assert explanation.tokens[:5] == ["<s>", "System. Be kind.\n", "What", " is it?", "<e>"]
    assert [token for token, special in zip(explanation.tokens, explanation.special) if special] == ["<s>", "<e>"]
    assert chat().aggregate({"all": (0, 31)}).tokens[0] == "<s>System. Be kind.\nWhat is it?"


def test_a_list_of_spans_is_numbered():
    explanation = chat().aggregate(["Be kind", (3, 9)], generated="sentence")
    assert explanation.unit_names == [None, "span 2", None, "span 1", *[None] * 4]
    assert explanation.tokens[-2:] == ["A dog.", " Yes!"]


def test_a_span_may_begin_inside_a_token():
    explanation = chat().aggregate({"a": "ind"})
    assert explanation.tokens[explanation.unit_names.index("a")] == " kind"


def test_neighbouring_spans_keep_their_spaces_apart():
    explanation = made_up(["One", " two", " ", "three", " end"], 4)
    joined = explanation.aggregate({"a": (0, 7), "b": (7, 13)})
    assert joined.tokens == ["One two", " three", " end"]
    assert joined.unit_names == ["a", "b", None]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"a": "nowhere"}, "is not in the prompt"),
        ({"a": "dog"}, "is not in the prompt"),  # it is in the answer
        ({"a": "."}, r"is 2 times in the prompt, from characters \[9, 18\] on"),
        ({"a": ""}, "is not in the prompt"),
        ({"a": (3, 99)}, "end <= "),
        ({"a": (5, 5)}, "start <"),
        ({"a": (-2, 5)}, "0 <= start"),
        ({"a": 7}, "pair"),
        ({"a": (0, 9), "b": (8, 12)}, "overlap"),
        ({"a": (3, 4), "b": (4, 5)}, "share all their tokens"),
        ("chapter", "level of units"),
        (7, "dict or a list"),
    ],
)
def test_spans_that_cannot_be_meant(spans, message):
    with pytest.raises(InvalidInputError, match=message):
        chat().aggregate(spans)


def test_an_unknown_level_is_named():
    with pytest.raises(InvalidInputError, match=r"one of \['token', 'word', 'sentence', 'paragraph', 'message'\], got 'line'"):
        chat().units("line")
    with pytest.raises(InvalidInputError, match="got 'line'"):
        chat().aggregate({"a": "kind"}, generated="line")


def test_a_sequence_without_generated_tokens_has_units():
    explanation = made_up(["One", " two"], 2)
    assert dataclasses.replace(explanation).aggregate("sentence").attributions.shape == (0, 1)
