"""Chats of several users on one model: what they are answered, and what is known of the answers. Without Gradio."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from gradellm_hf import GradELLM, InvalidInputError
from gradellm_hf.app.documents import Document, documents_of, places_of, with_documents
from gradellm_hf.app.engine import Engine
from gradellm_hf.app.session import Session, Sessions
from gradellm_hf.app.settings import Settings
from tests.support.chats import Gate, chatting
from tests.support.small_llama import assert_same_heatmaps

DOCUMENTS = [Document("tickets", "A ticket costs twelve euros."), Document("cafe", "It serves\n soup.")]
SHORT = Settings(max_new_tokens=6)


@pytest.fixture(scope="module")
def chatty() -> tuple[GradELLM, Gate]:
    return chatting()


@pytest.fixture
def explainer(chatty: tuple[GradELLM, Gate]) -> GradELLM:
    return chatty[0]


@pytest.fixture
def gate(chatty: tuple[GradELLM, Gate]) -> Gate:
    return chatty[1]


@pytest.fixture
def engine(explainer: GradELLM) -> Engine:
    return Engine(explainer)


def asked(session: Session, engine: Engine, question: str, settings: Settings = SHORT) -> list[str]:
    """Asks, with all documents; returns the states of the answer."""
    session.ask(question, [document.title for document in session.documents], settings)
    return written(session, engine)


def written(session: Session, engine: Engine) -> list[str]:
    return [session.turns[-1].answer for _ in session.write(engine) if session.turns]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_an_answer_grows_and_is_explained_as_explain_does(engine: Engine, explainer: GradELLM) -> None:
    session = Session(list(DOCUMENTS))
    states = asked(session, engine, "How much?")
    expected = explainer.explain([user(with_documents("How much?", DOCUMENTS))], max_new_tokens=6, do_sample=False)
    assert states[-1] == expected.answer
    assert all(later.startswith(earlier) for earlier, later in pairwise(state.strip() for state in states))
    turn = session.explained()
    assert turn is not None
    assert turn.explanation is not None
    assert turn.explanation.token_ids == expected.token_ids
    assert_same_heatmaps(turn.explanation.attributions, expected.attributions)
    assert session.explained() is None


def test_the_model_is_given_the_chat_so_far_and_only_the_documents_with_a_mark(engine: Engine) -> None:
    session = Session(list(DOCUMENTS))
    asked(session, engine, "First?")
    first = session.turns[0].answer
    session.ask("Second?", ["cafe"], Settings(max_new_tokens=2, system="Be brief."))
    assert session.turns[1].chat == [
        {"role": "system", "content": "Be brief."},
        user("cafe: It serves\n soup.\n\nQuestion: First?"),
        {"role": "assistant", "content": first},
        user("Second?"),
    ]


def test_documents_messages_and_earlier_turns_are_found_in_the_explained_text(engine: Engine) -> None:
    session = Session(list(DOCUMENTS))
    asked(session, engine, "First?")
    asked(session, engine, "Second?", Settings(max_new_tokens=4, system="Be brief."))
    session.explained()
    turn = session.explained()
    assert turn is not None
    assert turn.explanation is not None
    places = places_of(turn.explanation, turn.documents)
    found = {name: turn.explanation.text[start:end] for name, (start, end) in places.items()}
    assert found == {
        "system": "Be brief.",
        "tickets": "tickets: A ticket costs twelve euros.",
        "cafe": "cafe: It serves\n soup.",
        "question 1": "Question: First?",
        "answer 1": session.turns[0].answer,
        "question": "Second?",
    }
    (part,) = turn.explanation.sources(places, of="answer")
    assert {source.name for source in part.sources} <= set(places)


def test_titles_are_numbered_if_they_occur_again_and_empty_documents_are_refused() -> None:
    session = Session()
    for title in ("a", " a", ""):
        session.add(title, "Text.")
    assert [document.title for document in session.documents] == ["a", "a (2)", "document"]
    with pytest.raises(InvalidInputError, match="no text"):
        session.add("b", "  ")
    session.remove(["a"])
    assert [document.title for document in session.documents] == ["a (2)", "document"]
    with pytest.raises(InvalidInputError, match="title: text"):
        documents_of({"a": 1})


def test_a_stopped_answer_ends_at_its_next_token_and_what_there_is_is_explained(engine: Engine, gate: Gate) -> None:
    session = Session()
    session.ask("Go on.", [], Settings(max_new_tokens=200))
    with gate.closed_after(5), ThreadPoolExecutor(1) as pool:
        states = pool.submit(written, session, engine)
        assert gate.reached.wait(30)
        session.stop()
        gate.open()
        states.result(30)
    turn = session.explained()
    assert turn is not None
    assert turn.explanation is not None
    assert len(turn.explanation.attributions) == 6  # five, and the one that was being computed
    assert turn.answer == turn.explanation.answer


def test_an_answer_that_is_stopped_while_it_waits_for_others_is_not_written(engine: Engine) -> None:
    session = Session()
    session.ask("Never mind.", [], SHORT)
    session.stop()
    assert written(session, engine) == []
    assert session.turns == []
    assert asked(session, engine, "Now?")[-1]


def test_the_next_answer_does_not_wait_for_an_explanation(engine: Engine, gate: Gate) -> None:
    session = Session()
    with gate.closed_after(6):  # six tokens; the seventh pass is the explanation's
        asked(session, engine, "First?")
        assert gate.reached.wait(30)
        assert session.turns[0].explanation is None
        assert asked(session, engine, "Second?")[-1]
    assert [session.explained(), session.explained()] == session.turns
    assert all(turn.explanation is not None for turn in session.turns)


def test_only_one_question_at_a_time_is_asked_in_a_session(engine: Engine) -> None:
    session = Session()
    with pytest.raises(InvalidInputError, match="Write a question"):
        session.ask("  ", [], SHORT)
    session.ask("First?", [], SHORT)
    with pytest.raises(InvalidInputError, match="still being written"):
        session.ask("Second?", [], SHORT)
    written(session, engine)
    session.ask("Second?", [], SHORT)


def test_two_sessions_at_once_get_what_they_would_get_alone(engine: Engine) -> None:
    questions = ["How much is a ticket?", "What does the cafe serve, and when?"]
    alone = [asked(Session(), engine, question)[-1] for question in questions]
    sessions = [Session(), Session()]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda k: asked(sessions[k], engine, questions[k])[-1], range(2)))
    assert together == alone
    assert [session.explained() is session.turns[0] for session in sessions] == [True, True]


@pytest.mark.parametrize("passes", [0, 3], ids=["at once", "in the middle"])
def test_after_a_generation_that_fails_the_session_goes_on(engine: Engine, gate: Gate, passes: int) -> None:
    session = Session()
    with gate.closed_after(passes, RuntimeError("the device is gone")), pytest.raises(RuntimeError, match="device is gone"):
        asked(session, engine, "First?")
    assert asked(session, engine, "Second?")[-1]
    assert session.turns[-1].question == "Second?"


def test_an_answer_outlives_an_explanation_that_fails_and_the_reason_is_kept(engine: Engine, gate: Gate) -> None:
    session = Session()
    with gate.closed_after(6, RuntimeError("no room")):
        answer = asked(session, engine, "First?")[-1]
        with pytest.raises(RuntimeError, match="no room"):
            session.explained()
    assert session.turns[0].answer == answer
    with pytest.raises(InvalidInputError, match="no room"):
        session.explanation(session.turns[0], engine)


def test_a_generation_that_nobody_waits_for_ends_and_leaves_its_place_to_others(engine: Engine) -> None:
    for _ in range(6):  # more than may run at the same time
        session = Session()
        session.ask("Go on.", [], Settings(max_new_tokens=400))
        states = session.write(engine)
        next(states)
        states.close()  # as a page that is closed leaves it
    assert asked(Session(), engine, "And me?")[-1]
    for thread in threading.enumerate():
        if thread.name == "answer":
            thread.join(10)
            assert not thread.is_alive()


def test_old_explanations_are_let_go_and_computed_again_when_asked_for(engine: Engine) -> None:
    session, first = Session(), None
    for number in range(6):
        asked(session, engine, f"Number {number}?")
        turn = session.explained()
        first = first or turn.explanation
    assert [turn.explanation is None for turn in session.turns] == [True, True, False, False, False, False]
    again = session.explanation(session.turns[0], engine)
    assert again.token_ids == first.token_ids
    assert again.segments == first.segments
    assert_same_heatmaps(again.attributions, first.attributions)
    assert sum(turn.explanation is not None for turn in session.turns) == 4


def test_what_an_answer_loses_without_a_document_is_measured_and_the_other_answer_written(engine: Engine) -> None:
    session = Session(list(DOCUMENTS))
    asked(session, engine, "First?")
    asked(session, engine, "How much?")
    session.explained()
    turn = session.explained()
    removals, answer = session.without(turn, "tickets", engine)
    (removal,) = removals
    assert [source.name for source in removal.removed] == ["tickets"]
    assert removal.part.text == turn.answer
    other = Session([DOCUMENTS[1]], turns=session.turns[:1])
    assert asked(other, engine, "How much?")[-1] == answer
    with pytest.raises(InvalidInputError, match="no document 'menu'"):
        session.without(turn, "menu", engine)


def test_why_not_is_answered_from_the_chosen_word_on(engine: Engine) -> None:
    session = Session(list(DOCUMENTS))
    asked(session, engine, "How much?")
    turn = session.explained()
    answer, begin = "It costs ten euros.", len("It costs ")
    contrast = engine.contrast(turn.chat, answer, begin, "zebra", SHORT)
    assert "".join(contrast.tokens[:-1]).rstrip().endswith("It costs")
    assert contrast.foil is not None
    assert bool((contrast.attributions < 0).any())
    assert {"tickets", "cafe", "answer so far"} <= places_of(contrast, turn.documents).keys()
    with pytest.raises(InvalidInputError, match="instead"):
        engine.contrast(turn.chat, answer, begin, " ", SHORT)


def test_a_chat_that_is_too_long_is_refused_and_an_answer_ends_where_the_model_does(explainer: GradELLM) -> None:
    engine, session = Engine(explainer, most_new_tokens=5), Session()
    assert asked(session, engine, "Short?", Settings(max_new_tokens=100))[-1]
    assert len(session.explained().explanation.attributions) == 5
    with pytest.raises(InvalidInputError, match="reads at most 512"):
        asked(session, engine, "long " * 600)
    assert len(session.turns) == 1


def test_settings_reach_the_explanation_and_the_generation(engine: Engine) -> None:
    session = Session()
    asked(session, engine, "Layers?", Settings(max_new_tokens=3, last_layers=2))
    assert session.explained().explanation.layers == [3, 4]
    torch.manual_seed(1)
    sampled = [asked(session, engine, "Again?", Settings(max_new_tokens=8, do_sample=True, temperature=2.0))[-1] for _ in "ab"]
    assert sampled[0] != sampled[1]
    with pytest.raises(InvalidInputError, match="temperature"):
        Settings(temperature=0)


def test_a_model_without_a_chat_template_chats_as_text() -> None:
    session = Session(list(DOCUMENTS))
    asked(session, Engine(chatting(template=None)[0]), "How much?")
    turn = session.explained()
    assert turn.explanation.text.startswith("user: tickets: A ticket costs")
    assert set(places_of(turn.explanation, turn.documents)) == {"tickets", "cafe", "question"}


def test_sessions_are_apart_and_closed_when_there_are_very_many(engine: Engine) -> None:
    sessions = Sessions(DOCUMENTS)
    first = sessions["first"]
    first.remove(["cafe"])
    assert [document.title for document in sessions["second"].documents] == ["tickets", "cafe"]
    first.ask("Go on.", [], Settings(max_new_tokens=400))
    states = first.write(engine)
    next(states)
    for number in range(300):
        sessions[str(number)]
    assert len(sessions) == 256
    assert sessions["first"] is not first
    assert list(states) == []
    assert first.turns == []


def test_a_new_chat_begins_at_once_and_nothing_of_the_old_one_comes_into_it(engine: Engine, gate: Gate) -> None:
    session = Session(list(DOCUMENTS))
    session.ask("Go on.", [], Settings(max_new_tokens=400))
    with gate.closed_after(3), ThreadPoolExecutor(1) as pool:
        states = pool.submit(written, session, engine)
        assert gate.reached.wait(30)
        session.clear()
        assert asked(session, engine, "Anew?")[-1]
        gate.open()
        states.result(30)
    assert [turn.question for turn in session.turns] == ["Anew?"]
    assert session.explained() is session.turns[0]
    assert session.explained() is None
    assert session.documents == DOCUMENTS
