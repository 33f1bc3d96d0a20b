"""All servers are asked who has a stored response, and the search ends in time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.proxy.gateway_fakes import server
from twisted_vllm.config.settings import Server
from twisted_vllm.errors import ResponseNotLocated, UpstreamUnreachable
from twisted_vllm.upstreams.response_locator import MAX_ID, MAX_SEARCHES, TIMEOUT, ResponseLocator
from twisted_vllm.upstreams.response_places import ResponsePlaces

SERVERS = tuple(server(f"{name}:80") for name in "abc")


class Response:
    """A response whose body nobody may read."""

    stopped = False

    def __init__(self, code: int) -> None:
        self.code = code

    def stopProducing(self) -> None:
        self.stopped = True


class Lab:
    """Servers whose answers the test gives.

    Attributes:
        urls: what was asked for.
        asked: the requests by their server's name.
        cancelled: the servers whose request was given up.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.places = ResponsePlaces()
        self.urls: list[bytes] = []
        self.asked: dict[str, Deferred[Any]] = {}
        self.cancelled: list[str] = []
        self.locator = ResponseLocator(self, self.clock, self.places)  # type: ignore[arg-type]  # only `request` is called

    def request(self, method: bytes, url: bytes, *, server: Server, **more: Any) -> Deferred[Any]:
        self.urls.append(url)
        asked: Deferred[Any] = Deferred(lambda _: self.cancelled.append(server.name))
        self.asked[server.name] = asked
        return asked

    def search(self, response_id: str = "resp_1", servers: Any = SERVERS) -> tuple[Deferred[Any], list[Any]]:
        found: list[Any] = []
        searched = self.locator.locate(response_id, servers)
        searched.addBoth(found.append)
        return searched, found

    def answer(self, name: str, code: int | None) -> None:
        asked = self.asked[f"{name}:80"]
        if code is None:
            asked.errback(UpstreamUnreachable("No connection."))
        else:
            response = Response(code)
            asked.callback(response)
            assert response.stopped


def is_not_located(found: list[Any]) -> bool:
    return isinstance(found[0], Failure) and found[0].check(ResponseNotLocated) is not None


def test_the_first_server_that_has_it_wins_and_the_others_are_given_up() -> None:
    lab = Lab()
    _, found = lab.search()
    assert lab.urls == [b"http://%b:80/v1/responses/resp_1" % name for name in (b"a", b"b", b"c")]
    lab.answer("a", 404)
    assert found == []
    lab.answer("b", 200)
    assert found == [SERVERS[1]]
    assert lab.cancelled == ["c:80"]
    assert lab.places.find("resp_1") == "b:80"
    assert not lab.clock.getDelayedCalls()


@given(st.permutations("abc"), st.tuples(*[st.sampled_from([200, 400, 401, 404, 500, 503, None])] * 3))
def test_a_response_wins_over_a_refusal_and_a_refusal_over_not_found(
    order: list[str], codes: tuple[int | None, ...]
) -> None:
    lab = Lab()
    _, found = lab.search()
    for name in order:
        if not found:
            lab.answer(name, codes["abc".index(name)])
    refusing = [SERVERS[index] for index, code in enumerate(codes) if code in (400, 401)]
    if 200 in codes:
        assert codes[SERVERS.index(found[0])] == 200
    elif refusing:
        assert found == [refusing[0]]
    elif set(codes) == {404}:
        assert found == [None]
        assert len(lab.places) == 0
    else:
        assert is_not_located(found)
    assert not lab.clock.getDelayedCalls()


def test_a_frozen_server_does_not_hold_up_the_search() -> None:
    lab = Lab()
    _, found = lab.search()
    lab.answer("a", 404)
    lab.answer("b", 404)
    lab.clock.advance(TIMEOUT)
    assert is_not_located(found)
    assert found[0].value.retry_after
    assert lab.cancelled == ["c:80"]


def test_who_searches_the_same_shares_a_search() -> None:
    lab = Lab()
    first, left = lab.search()
    _, found = lab.search()
    assert len(lab.urls) == 3
    first.cancel()
    assert left[0].check(CancelledError)
    lab.answer("c", 200)
    assert found == [SERVERS[2]]


def test_a_search_that_nobody_waits_for_ends() -> None:
    lab = Lab()
    searched, found = lab.search()
    searched.cancel()
    assert found[0].check(CancelledError)
    assert sorted(lab.cancelled) == ["a:80", "b:80", "c:80"]
    assert not lab.clock.getDelayedCalls()
    assert lab.search()[1] == []
    assert len(lab.urls) == 6


@pytest.mark.parametrize("name", ["", "x" * (MAX_ID + 1), "..", "."])
def test_what_is_no_id_is_not_asked_for(name: str) -> None:
    lab = Lab()
    _, found = lab.search(name, () if not name else SERVERS)
    assert found == [None]
    assert lab.urls == []


def test_an_id_is_one_segment_of_the_path() -> None:
    lab = Lab()
    lab.search("a/../b?x=é\r\n", SERVERS[:1])
    assert lab.urls == [b"http://a:80/v1/responses/a%2F..%2Fb%3Fx%3D%C3%A9%0D%0A"]


def test_searches_are_bounded() -> None:
    lab = Lab()
    for index in range(MAX_SEARCHES):
        lab.search(f"resp_{index}", SERVERS[:1])
    _, found = lab.search("resp_more", SERVERS[:1])
    assert is_not_located(found)
    assert len(lab.urls) == MAX_SEARCHES
