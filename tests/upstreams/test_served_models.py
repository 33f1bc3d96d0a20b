"""What a server says of its models, and how long it is remembered."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from tests.proxy.gateway_fakes import server
from twisted_vllm.upstreams.served_models import (
    FRESH,
    LISTED,
    MAX_ANSWER,
    MAX_OBJECTS,
    PATIENCE,
    RETRY,
    TIMEOUT,
    ServedModels,
)

SERVER = server("one:80")
LIST = {
    "object": "list",
    "data": [{"id": "base", "parent": None}, {"id": "also"}, {"id": "adapter", "parent": "base"}],
}


class Answer:
    """A response with a body; `endless` sends it on and on until it is stopped, and counts in `sent`."""

    def __init__(self, body: bytes, endless: bool = False) -> None:
        self._body = body
        self._endless = endless
        self._stopped = False
        self.sent = 0
        self.length = len(body)

    def deliverBody(self, protocol: Any) -> None:
        protocol.makeConnection(self)
        while not self._stopped and not (self.sent and not self._endless):
            protocol.dataReceived(self._body)
            self.sent += len(self._body)
        protocol.connectionLost(Failure(ResponseDone()))

    def stopProducing(self) -> None:
        self._stopped = True


class Client:
    """Answers each request with the next of `answers`; counts them."""

    def __init__(self, *answers: Deferred[Answer]) -> None:
        self.sent: list[tuple[bytes, bytes]] = []
        self._answers = list(answers)

    def request(self, method: bytes, url: bytes, **more: Any) -> Deferred[Answer]:
        self.sent.append((method, url))
        return self._answers.pop(0)


def told(value: object) -> Deferred[Answer]:
    return succeed(Answer(value if isinstance(value, bytes) else json.dumps(value).encode()))


def served(clock: Clock, *answers: Deferred[Answer]) -> tuple[ServedModels, Client]:
    client = Client(*answers)
    return ServedModels(client, clock), client  # type: ignore[arg-type]  # only `request` is called


def test_the_first_model_that_is_no_adapter_is_the_base_model() -> None:
    models, client = served(Clock(), told(LIST))
    assert models.base_model(SERVER) is None
    assert models.ask(SERVER).called
    assert client.sent == [(b"GET", SERVER.url + b"/v1/models")]
    assert models.base_model(SERVER) == "base"
    assert [models.has_model(SERVER, name) for name in ("base", "also", "adapter", "goofy", "")] == [True] * 3 + [
        False
    ] * 2


def test_a_server_is_asked_again_after_a_while() -> None:
    clock = Clock()
    models, _ = served(clock, told(LIST), told({"data": [{"id": "other"}]}))
    models.ask(SERVER)
    clock.advance(FRESH)
    assert models.base_model(SERVER) is None
    models.ask(SERVER)
    assert (models.base_model(SERVER), models.has_model(SERVER, "base")) == ("other", False)


def test_those_who_ask_at_the_same_time_share_one_request() -> None:
    answer: Deferred[Answer] = Deferred()
    models, client = served(Clock(), answer)
    waiting = [models.ask(SERVER), models.ask(SERVER)]
    assert len(client.sent) == 1
    answer.callback(Answer(json.dumps(LIST).encode()))
    assert [each.called for each in waiting] == [True, True]


@pytest.mark.parametrize(
    "body",
    [
        b"no JSON",
        {"data": []},
        {},
        {"data": [{"id": "a", "parent": "b"}]},
        b" " * (MAX_ANSWER + 1),
        {"data": [{"id": "a"}] * MAX_OBJECTS},
    ],
    ids=["no JSON", "no models", "no list", "only an adapter", "too long", "too many models"],
)
def test_a_server_that_does_not_tell_is_asked_again_soon(body: object) -> None:
    clock = Clock()
    models, _ = served(clock, told(body))
    assert models.ask(SERVER).called
    assert models.base_model(SERVER) == ""
    clock.advance(RETRY)
    assert models.base_model(SERVER) is None


@pytest.mark.parametrize("answer", ["refused", "silent"])
def test_a_server_that_does_not_answer_does_not_tell(answer: str) -> None:
    clock = Clock()
    models, _ = served(clock, fail(ConnectionRefusedError()) if answer == "refused" else Deferred())
    waiting = models.ask(SERVER)
    if answer == "silent":
        clock.advance(TIMEOUT)
    assert waiting.called
    assert models.base_model(SERVER) == ""


def test_an_endless_list_is_cut_at_its_bound() -> None:
    answer = Answer(b"x" * 65_536, endless=True)
    models, _ = served(Clock(), succeed(answer))
    assert models.ask(SERVER).called
    assert models.base_model(SERVER) == ""
    assert answer.sent <= MAX_ANSWER + 65_536


@pytest.mark.parametrize("unit", [b'{"id":""},', b"0,", b'"",', b"[],", b"{},"])
def test_no_list_takes_20_ms_to_read(unit: bytes) -> None:
    body = (b'{"data":[' + unit * (MAX_ANSWER // len(unit)))[: MAX_ANSWER - 100]
    fastest = 1.0
    for _ in range(5):
        models, _ = served(Clock(), told(body))
        began = time.thread_time()
        models.ask(SERVER)
        fastest = min(fastest, time.thread_time() - began)
    assert fastest < 0.020


def test_the_models_of_a_server_with_thousands_of_adapters_are_read() -> None:
    card = {"id": "adapter", "object": "model", "created": 1, "owned_by": "vllm", "root": "r" * 60, "parent": "base"}
    card["permission"] = [{"id": "modelperm", "object": "model_permission", "created": 1, "organization": "*"}]
    cards = [{"id": "base"}, *({**card, "id": f"adapter-{number}"} for number in range(5_000))]
    models, _ = served(Clock(), told({"object": "list", "data": cards}))
    models.ask(SERVER)
    assert models.base_model(SERVER) == "base"
    assert models.has_model(SERVER, "adapter-4999")


def test_what_a_server_says_of_its_models_is_kept_as_it_is() -> None:
    models, _ = served(Clock(), told({"data": [{"id": "a", "max_model_len": 7, "x": [1, {}]}, {"id": "b"}]}))
    assert models.refresh([SERVER, SERVER]).called
    assert models.cards(SERVER) == {"a": {"id": "a", "max_model_len": 7, "x": [1, {}]}, "b": {"id": "b"}}
    assert models.answers(SERVER)


def test_an_answer_is_listed_for_a_few_seconds() -> None:
    clock = Clock()
    models, client = served(clock, told(LIST), told({"data": [{"id": "new"}]}))
    models.refresh([SERVER])
    clock.advance(LISTED - 0.1)
    models.refresh([SERVER])
    assert len(client.sent) == 1
    clock.advance(0.1)
    models.refresh([SERVER])
    assert list(models.cards(SERVER)) == ["new"]


def test_nothing_waits_long_for_a_server_and_not_at_all_for_one_that_did_not_answer() -> None:
    clock = Clock()
    models, client = served(clock, Deferred(), Deferred())
    waiting = [models.refresh([SERVER]), models.refresh([SERVER])]
    clock.advance(PATIENCE - 0.1)
    assert not any(each.called for each in waiting)
    clock.advance(0.1)
    assert all(each.called for each in waiting)
    clock.advance(TIMEOUT)
    assert not models.answers(SERVER)
    clock.advance(RETRY)
    assert models.refresh([SERVER]).called
    assert len(client.sent) == 2


def test_a_server_that_stops_to_answer_keeps_its_cards_and_its_base_model_for_its_time() -> None:
    clock = Clock()
    models, _ = served(clock, told(LIST), fail(ConnectionRefusedError()), fail(ConnectionRefusedError()))
    models.refresh([SERVER])
    clock.advance(LISTED)
    models.refresh([SERVER])
    assert (models.answers(SERVER), models.base_model(SERVER)) == (False, "base")
    assert set(models.cards(SERVER)) == {"base", "also", "adapter"}
    clock.advance(FRESH)
    models.refresh([SERVER])
    assert models.base_model(SERVER) == ""
    models.keep_only([])
    assert models.cards(SERVER) == {}


def test_who_gives_up_waiting_disturbs_nobody() -> None:
    answer: Deferred[Answer] = Deferred()
    models, _ = served(Clock(), answer)
    one, other = models.refresh([SERVER]), models.refresh([SERVER])
    one.addErrback(lambda _: None)
    one.cancel()
    answer.callback(Answer(json.dumps(LIST).encode()))
    assert other.called
    assert models.answers(SERVER)
