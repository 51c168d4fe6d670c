"""The app's server, as other programs see it: one endpoint, on this machine alone."""

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest

from gradellm_hf import GradELLM, InvalidInputError
from gradellm_hf.app.documents import documents_of, places_of, with_documents
from tests.support.chats import chatting

pytest.importorskip("gradio")
DOCUMENTS = {"tickets": "A ticket costs twelve euros.", "cafe": "The cafe serves soup."}


@pytest.fixture(scope="module")
def explainer() -> GradELLM:
    return chatting()[0]


@pytest.fixture(scope="module")
def url(explainer: GradELLM) -> Iterator[str]:
    from gradellm_hf.app import launch

    app = launch(explainer, most_new_tokens=8, wait=False)
    yield str(app.local_url)
    app.close()


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    from gradio_client import Client

    return Client(url, verbose=False)


def test_a_program_gets_an_answer_with_the_sources_of_each_sentence(client: Any, explainer: GradELLM) -> None:
    got = client.predict("How much?", DOCUMENTS, "Be brief.", 6, api_name="/ask")
    found = documents_of(DOCUMENTS)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": with_documents("How much?", found)}]
    expected = explainer.explain(chat, max_new_tokens=6, do_sample=False)
    assert got["answer"] == expected.answer
    parts = expected.sources(places_of(expected, found)).to_dict()["parts"]
    assert [part["text"] for part in got["sources"]] == [part["text"] for part in parts]
    for part, other in zip(got["sources"], parts):
        shares = {source["name"]: source["share"] for source in part["sources"]}
        assert shares == pytest.approx({source["name"]: source["share"] for source in other["sources"]}, abs=1e-3)
        assert sum(shares.values()) == pytest.approx(1)


def test_without_documents_the_sources_are_sentences(client: Any) -> None:
    (part, *_) = client.predict("One. Two?", api_name="/ask")["sources"]
    assert {source["text"] for source in part["sources"]} <= {"One.", "Two?"}


def test_an_error_says_what_is_wrong(client: Any) -> None:
    with pytest.raises(Exception, match="reads at most 512"):
        client.predict("long " * 600, api_name="/ask")
    with pytest.raises(Exception, match="at least 1"):
        client.predict("Short?", None, "", 0, api_name="/ask")


def test_it_is_the_only_endpoint_and_its_arguments_are_described(client: Any) -> None:
    described = client.view_api(return_format="dict")
    assert list(described["named_endpoints"]) == ["/ask"]
    assert described["unnamed_endpoints"] == {}
    names = [parameter["parameter_name"] for parameter in described["named_endpoints"]["/ask"]["parameters"]]
    assert names == ["question", "documents", "system", "max_new_tokens"]


def test_it_listens_on_this_machine_alone_and_sends_nothing_home(url: str) -> None:
    config = json.load(urlopen(f"{url}config", timeout=30))
    assert config["analytics_enabled"] is False
    assert url.startswith("http://127.0.0.1:")
    port = int(url.rstrip("/").rpartition(":")[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in [address for address in others if not address.startswith("127.")]:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((address, port)) != 0


def test_what_cannot_be_is_refused_before_anything_starts(explainer: GradELLM) -> None:
    from gradellm_hf.app import launch

    with pytest.raises(InvalidInputError, match="answers_at_once"):
        launch(explainer, answers_at_once=0)
    with pytest.raises(InvalidInputError, match="tokenizer"):
        launch(GradELLM(explainer.model))
