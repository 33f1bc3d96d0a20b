"""The issuer's keys are fetched seldom, kept while it is away, and given up when it withdraws them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.iweb import IAgent
from zope.interface import implementer

from tests.identification.issuer import SigningKey, key_set
from twisted_vllm.identification.key_sets import (
    FETCH_INTERVAL,
    FETCH_SECONDS,
    LARGEST_KEY_SET,
    KeySetError,
    KeySets,
    fetch,
)

URL = "https://login.example.com/keys"
TTL, STALE = 600.0, 3600.0
ONE, TWO = SigningKey("k1", "ES256"), SigningKey("k2", "ES256")


class Fetching:
    """Key sets whose issuer answers as the test says."""

    def __init__(self, *urls: str) -> None:
        self.clock = Clock()
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {URL: key_set(ONE)}
        self.dropped = 0
        self.sets = KeySets(urls or (URL,), TTL, STALE, self._fetch, self.clock, self._drop)

    def _fetch(self, url: str) -> Deferred[bytes]:
        self.asked.append(url)
        answer = self.answers[url]
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def _drop(self) -> None:
        self.dropped += 1

    def refresh(self) -> bool:
        """Fetch; return whether that was possible."""
        waiting = self.sets.refresh()
        return waiting is not None

    def ids(self) -> list[str]:
        return [key.kid for key in self.sets.keys]


@pytest.fixture
def fetching() -> Fetching:
    return Fetching()


def test_nothing_is_fetched_before_a_token_comes(fetching: Fetching) -> None:
    assert (fetching.asked, fetching.ids(), fetching.sets.fresh_seconds > 0) == ([], [], False)


def test_all_who_wait_share_one_fetch(fetching: Fetching) -> None:
    answer: Deferred[bytes] = Deferred()
    fetching.answers[URL] = answer
    told: list[None] = []
    for _ in range(3):
        waiting = fetching.sets.refresh()
        assert waiting is not None
        waiting.addCallback(told.append)
    answer.callback(key_set(ONE))
    assert (told, fetching.asked, fetching.ids()) == ([None] * 3, [URL], ["k1"])
    assert fetching.sets.fresh_seconds == TTL


def test_a_moment_after_a_fetch_there_is_no_other(fetching: Fetching) -> None:
    assert fetching.refresh()
    assert not fetching.refresh()
    fetching.clock.advance(FETCH_INTERVAL)
    assert fetching.refresh()


def test_a_key_that_stays_is_the_same_and_one_that_goes_is_not_trusted(fetching: Fetching) -> None:
    fetching.answers[URL] = key_set(ONE, TWO)
    fetching.refresh()
    one, two = fetching.sets.keys
    fetching.clock.advance(FETCH_INTERVAL)
    fetching.answers[URL] = key_set(TWO)
    fetching.refresh()
    assert fetching.sets.keys == [two]
    assert (one.trusted, two.trusted, fetching.dropped) == (False, True, 1)


def test_another_key_with_the_same_id_takes_its_place(fetching: Fetching) -> None:
    fetching.refresh()
    [old] = fetching.sets.keys
    fetching.clock.advance(FETCH_INTERVAL)
    fetching.answers[URL] = key_set(SigningKey("k1", "ES256"))
    fetching.refresh()
    assert not old.trusted
    assert fetching.sets.keys[0] is not old


@pytest.mark.parametrize(
    "answer",
    [KeySetError("it answers 500"), ConnectionRefusedError(), b"<html>", b'{"keys": []}', key_set({"kty": "oct"})],
)
def test_keys_are_used_while_the_issuer_does_not_answer_and_not_for_ever(fetching: Fetching, answer: Any) -> None:
    fetching.refresh()
    fetching.answers[URL] = answer
    fetching.clock.advance(TTL)
    assert fetching.sets.fresh_seconds <= 0
    fetching.refresh()
    assert fetching.ids() == ["k1"]
    fetching.clock.advance(STALE - 0.1)
    assert fetching.ids() == ["k1"]
    fetching.clock.advance(0.1)
    assert (fetching.ids(), fetching.dropped) == ([], 1)


def test_an_issuer_that_does_not_answer_in_time_is_given_up(fetching: Fetching) -> None:
    answer: Deferred[bytes] = Deferred()
    fetching.answers[URL] = answer
    told: list[None] = []
    waiting = fetching.sets.refresh()
    assert waiting is not None
    waiting.addCallback(told.append)
    fetching.clock.advance(FETCH_SECONDS)
    assert (told, fetching.ids()) == ([None], [])


def test_one_issuer_that_fails_does_not_take_the_keys_of_another() -> None:
    other = "https://other.example.com/keys"
    fetching = Fetching(URL, other)
    fetching.answers[other] = KeySetError("it answers 404")
    fetching.refresh()
    assert fetching.ids() == ["k1"]
    assert fetching.sets.fresh_seconds <= 0


def test_an_openid_configuration_names_the_key_set(fetching: Fetching) -> None:
    there = "https://keys.example.com/jwks"
    fetching.answers = {URL: json.dumps({"jwks_uri": there}).encode(), there: key_set(ONE)}
    fetching.refresh()
    assert (fetching.asked, fetching.ids()) == ([URL, there], ["k1"])


@pytest.mark.parametrize("there", ["http://keys.example.com/jwks", "file:///etc/passwd", "https://é", "https://a\n", 7])
def test_an_openid_configuration_leads_nowhere_but_to_https(fetching: Fetching, there: Any) -> None:
    fetching.answers[URL] = json.dumps({"jwks_uri": there}).encode()
    fetching.refresh()
    assert (fetching.asked, fetching.ids()) == ([URL], [])


@implementer(IAgent)
class Answering:
    """An agent that answers with one response."""

    def __init__(self, code: int, *pieces: bytes) -> None:
        self.code = code
        self.requests: list[tuple[bytes, bytes]] = []
        self._pieces = pieces
        self.stopped = False

    def request(self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None) -> Deferred[Any]:
        self.requests.append((method, uri))
        return succeed(self)

    def deliverBody(self, protocol: Any) -> None:
        protocol.makeConnection(self)
        for piece in self._pieces:
            protocol.dataReceived(piece)
        protocol.connectionLost(Failure(ResponseDone()))

    def stopProducing(self) -> None:
        self.stopped = True


def test_the_body_of_an_answer_is_returned() -> None:
    agent = Answering(200, b"a", b"b")
    got: list[bytes] = []
    fetch(agent, URL).addCallback(got.append)
    assert (got, agent.requests) == ([b"ab"], [(b"GET", URL.encode())])


@pytest.mark.parametrize("code", [204, 301, 302, 404, 500])
def test_no_redirect_is_followed_and_no_error_read(code: int) -> None:
    failures: list[Failure] = []
    fetch(Answering(code, b"{}"), URL).addErrback(failures.append)
    assert failures[0].getErrorMessage() == f"it answers {code}"


def test_an_answer_without_end_is_cut() -> None:
    failures: list[Failure] = []
    agent = Answering(200, b"x" * LARGEST_KEY_SET, b"x")
    fetch(agent, URL).addErrback(failures.append)
    assert agent.stopped
    assert "bytes" in failures[0].getErrorMessage()


@implementer(ILogObserver)
class Events(list[Any]):
    """Logged events."""

    def __call__(self, event: LogEvent) -> None:
        self.append(event)


def test_the_log_says_what_failed_once(fetching: Fetching) -> None:
    events = Events()
    globalLogPublisher.addObserver(events)
    try:
        fetching.answers[URL] = ResponseFailed([Failure(ConnectionRefusedError())])
        for _ in range(3):
            fetching.refresh()
            fetching.clock.advance(FETCH_INTERVAL)
        fetching.answers[URL] = key_set(ONE)
        fetching.refresh()
    finally:
        globalLogPublisher.removeObserver(events)
    assert [event["log_format"][:40] for event in events] == [
        "The keys of {issuer} cannot be fetched: ",
        "The keys of {issuer} can be fetched agai",
    ]
    assert events[0]["reason"].startswith("ConnectionRefusedError")
