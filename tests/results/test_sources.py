"""What an answer rests on: named, ranked, with one definition of a share."""

import json

import pytest
import torch

from gradellm_hf import Explanation, InvalidInputError
from gradellm_hf.results.sources import shortened
from tests.support.readable import made_up

# A chat of two documents, as a template writes it: <s>user\n ... <e>bot\n ... <e>
CHAT = [
    "<s>",
    "user",
    "\n",
    "Red",
    " cats",
    ".",
    "\n\n",
    "Old",
    " dogs",
    ".",
    "<e>",
    "bot",
    "\n",
    "Cats",
    " meow",
    ".",
    " Yes",
    "<e>",
]
PROMPT = 13
SEGMENTS = [{"name": "1. user", "role": "user", "start": 8, "end": 28}]


def chat(scores=None, **fields):
    special = [token in ("<s>", "<e>") for token in CHAT]
    values = {"special": special, "segments": SEGMENTS, "layer_attributions": None, **fields}
    if scores is not None:
        values["attributions"] = torch.tensor(scores, dtype=torch.float32)
    return made_up(CHAT, PROMPT, **values)


def rows(*rows):
    """Rows of scores: those given, then zeros."""
    return [[*row, *[0] * (len(CHAT) - len(row))] for row in [*rows, *[[]] * (len(CHAT) - PROMPT - len(rows))]]


def named(part):
    return {source.name or source.text: round(source.share, 4) for source in part.sources}


def test_the_share_is_the_score_over_the_sum_of_all_candidates():
    #       <s> us \n Red cats .   \n\n Old dogs .  <e> bot \n
    scores = [50, 3, 2, 4, 10, 2, 0, 2, 2, 0, 9, 5, 11]
    (part,) = chat(rows(scores)).sources("sentence", of="answer")
    assert named(part) == {"Red cats.": 0.8, "Old dogs.": 0.2}
    assert part.ignored == pytest.approx({"special": 0.59, "template": 0.21})
    assert (part.text, part.start, part.end) == ("Cats meow. Yes", 35, 49)


def test_the_shares_of_a_part_add_up_to_one_with_what_is_ignored_beside_them():
    explanation = chat()
    for by in ("sentence", "paragraph", "message", "word", "token", {"cats": "Red cats."}):
        for of in ("answer", "segment", "sentence", "word", "token"):
            for part in explanation.sources(by, of):
                assert sum(source.share for source in part.sources) == pytest.approx(1)
                assert 0 < sum(part.ignored.values()) < 1


def test_small_scores_of_a_part_do_not_count_but_are_stated():
    (part,) = chat(rows([0, 0, 0, 19, 1, 0, 0, 0, 5, 0, 0, 0, 0])).sources("word", of="answer")
    assert named(part) == {"Red": 0.7917, "dogs": 0.2083}
    assert part.ignored == pytest.approx({"weak": 0.04})


def test_a_token_of_small_scores_has_sources_but_none_in_an_answer_of_large_ones():
    explanation = chat(rows([0, 0, 0, 19, 0, 0, 0, 0, 5, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0]))
    assert named(explanation.sources("word", "word")[1]) == {"Old": 1}
    assert named(explanation.sources("word", "answer")[0]) == {"Red": 0.7917, "dogs": 0.2083}


def test_parts_of_the_answer_are_without_special_tokens():
    for of, expected in {
        "answer": ["Cats meow. Yes"],
        "segment": ["Cats meow. Yes"],
        "sentence": ["Cats meow.", "Yes"],
        "word": ["Cats", "meow", ".", "Yes"],
        "token": ["Cats", "meow", ".", "Yes"],
    }.items():
        sources = chat().sources(of=of)
        assert [part.text for part in sources] == expected
        assert all(chat().text[part.start : part.end] == part.text for part in sources)
        assert (len(sources), sources[-1].text, sources.of) == (len(expected), expected[-1], of)


def test_the_probability_of_a_part_is_the_product_of_its_tokens():
    explanation = chat()
    assert explanation.sources(of="sentence")[0].probability == pytest.approx(explanation.token_probabilities[:3].prod().item())


def test_spans_keep_their_names_and_the_rest_of_the_prompt_is_stated():
    scores = [0, 0, 0, 5, 5, 0, 4, 6, 0, 0, 0, 0, 0]
    (part,) = chat(rows(scores)).sources({"cats": (8, 16), "the dogs": " dogs", "old": "Old"}, of="answer")
    assert named(part) == {"cats": 0.625, "old": 0.375}
    assert part.ignored == pytest.approx({"content": 0.2})


def test_own_text_is_a_source_when_it_is_not_ignored():
    explanation = chat(rows([], [0, 0, 0, 1, *[0] * 9, 3]))
    assert named(explanation.sources("sentence", "word")[1]) == {"Red cats.": 1}
    ignore = ["special", "template", "sink"]
    assert named(explanation.sources("word", "word", ignore=ignore)[1]) == {"Cats": 0.75, "Red": 0.25}
    assert named(explanation.sources({"cats": "Red cats."}, "word", ignore=ignore)[1]) == {"answer": 0.75, "cats": 0.25}


def test_negative_shares_speak_against():
    (part,) = chat(rows([0, 0, 0, 3, 0, 0, 0, -1, 0, 0, 0, 0, 0])).sources("word", of="answer")
    assert named(part) == {"Red": 0.75, "Old": -0.25}


def test_at_most_k_sources_are_named_and_their_shares_stay():
    explanation = chat(rows([0, 0, 0, 5, 3, 2, 0, 0, 0, 0, 0, 0, 0]))
    assert named(explanation.sources("token", "answer", k=1)[0]) == {"Red": 0.5}


def test_position_zero_is_a_sink_without_a_beginning_of_text():
    explanation = made_up(list("abcd"), 3, attributions=[[8, 2, 2, 0]], layer_attributions=None)
    (part,) = explanation.sources("token", of="answer")
    assert named(part) == {"b": 0.5, "c": 0.5}
    assert part.ignored == pytest.approx({"sink": 2 / 3})
    assert named(explanation.sources("token", "answer", ignore=())[0]) == {"a": 0.6667, "b": 0.1667, "c": 0.1667}


def test_the_table_and_the_terminal_show_the_same_shares():
    explanation = chat(rows([0, 0, 0, 5, 3, 2, 0, 0, 0, 0, 0, 0, 0]))
    table = explanation.to_dataframe()
    first = table[(table.step == 0) & (table.share > 0)]
    assert dict(zip(first.token, first.share)) == pytest.approx({"Red": 0.5, " cats": 0.3, ".": 0.2})
    assert explanation.render().splitlines()[0].split("  ", 1)[1].strip() == "Red 50 %  cats 30 %  . 20 %"
    assert set(table[table.token == "user"].kind) == {"template"}
    described = explanation.to_dict()["steps"][0]["strongest"]
    assert [(source["token"], source["share"], source["start"]) for source in described[:2]] == [
        ("Red", 0.5, 8),
        (" cats", 0.3, 11),
    ]


def test_they_print_as_a_list_and_as_html_that_holds_no_markup_of_the_text():
    explanation = chat(rows([0, 0, 0, 5, 3, 2, 0, 0, 0, 0, 0, 0, 0]))
    printed = str(explanation.sources({"<cats>": "Red cats.", "dogs": "dogs"}, of="answer"))
    assert printed.splitlines() == ["Cats meow. Yes", "  100 %  <cats>  [8:17]  Red cats."]
    html = explanation.sources({"<cats>": "Red cats."}, of="answer")._repr_html_()
    assert "&lt;cats&gt;" in html
    assert "<cats>" not in html


def test_long_sources_are_shortened_when_printed_and_whole_when_asked_for():
    text = ["s ", *["word "] * 60, "end", "\n", "A"]
    explanation = made_up(text, len(text) - 1, layer_attributions=None)
    line = str(explanation.sources("sentence", "answer")).splitlines()[1]
    assert "\u2026" in line
    assert len(line) < 100
    assert len(explanation.sources("sentence", "answer")[0].sources[0].text) > 300


def test_a_shortened_text_has_whole_words_unless_they_are_too_long():
    assert shortened("one two three four five six", 20) == "one two \u2026 five six"
    assert shortened("one   two\n", 20) == "one two"
    assert shortened("x" * 50, 21) == f"{'x' * 9} \u2026 {'x' * 9}"
    for longest in range(8, 60):
        assert len(shortened("Every morning she takes her red boat to the harbour.", longest)) <= longest


def test_they_are_json_and_a_table():
    sources = chat().sources({"cats": "Red cats."}, of="sentence")
    assert json.loads(sources.to_json()) == sources.to_dict()
    table = sources.to_dataframe()
    assert list(table.source) == ["cats"] * len(table)
    assert list(table.part) == [0, 1]


def test_highlighted_text_is_all_of_the_text_in_pieces_with_the_shares_of_a_part():
    explanation = chat(rows([], [0, 0, 0, 3, 2, 1, 0, 0, 4, 0, 0, 0, 0]))
    pieces = explanation.to_highlighted_text("word", "word", part=1)
    assert "".join(text for text, _ in pieces) == explanation.text
    share = {text: round(value, 2) for text, value in pieces if value is not None}
    assert share == {"Red": 0.3, "cats": 0.2, ".": 0.1, "dogs": 0.4}
    assert explanation.to_highlighted_text("word", "word") == [(explanation.text, None)]
    with pytest.raises(InvalidInputError, match="There is no part 4: the generated text has 4"):
        explanation.to_highlighted_text("word", "word", part=4)


def test_what_cannot_be_asked_is_refused():
    explanation = chat()
    for arguments, message in (
        ({"by": "chapter"}, "level of units"),
        ({"of": "message"}, "`of` must be"),
        ({"k": 0}, "`k` must be"),
        ({"ignore": ["prompt"]}, "`ignore` must be"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            explanation.sources(**arguments)
    with pytest.raises(InvalidInputError, match="The messages are not known"):
        chat(segments=None).sources("message")


def test_prompt_and_answer_are_without_special_tokens_and_template():
    assert (chat().prompt, chat().answer) == ("Red cats.\n\nOld dogs.", "Cats meow. Yes")
    assert chat(segments=None).prompt == "user\nRed cats.\n\nOld dogs.bot"


def test_segments_survive_a_file_and_old_files_have_none(tmp_path):
    chat().save(tmp_path / "new")
    assert Explanation.load(tmp_path / "new").segments == SEGMENTS
    assert str(Explanation.load(tmp_path / "new").sources("message")) == str(chat().sources("message"))
    with pytest.raises(InvalidInputError, match="no stretch of a text"):
        chat(segments=[{**SEGMENTS[0], "end": 999}])


def test_json_has_the_offsets_of_every_token():
    value = json.loads(chat().to_json())
    assert [value["text"][start:end] for start, end in value["offsets"]] == CHAT
    assert value["segments"] == SEGMENTS
    assert value["kinds"][:4] == ["special", "template", "template", "content"]
