"""The relay of the response to the client and of the body to the server."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface.verify import verifyObject

from tests.proxy.gateway_fakes import FakeRequest, HeaderPairs, server
from twisted_vllm.errors import OutOfSockets, UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.http.client.interfaces import IRelayedBody
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.proxy.relay import Relay, RequestBody

DONE = Failure(ResponseDone())


class Relayed:
    """A relay that waits for its response; the test is the connection to the server.

    Attributes:
        pending: fires with the response.
        given_up: how often the exchange was given up.
        calls: the calls on the connection.
    """

    def __init__(self, method: bytes = b"GET") -> None:
        self.request: Any = FakeRequest(method)
        self.given_up = 0
        self.calls: list[str] = []
        self.pending: Deferred[UpstreamResponse] = Deferred(lambda _: self._give_up())
        self.request.context.server = server()
        self.relay = Relay(self.request)  # type: ignore[arg-type]  # all that it uses of a request
        self.relay.await_response(self.pending)

    def respond(
        self, code: int = 200, headers: HeaderPairs | None = None, early: bytes = b"", complete: bool = False
    ) -> UpstreamResponse:
        """Let the head arrive, with the part of the body in the same segment."""
        head = ResponseHead(code, b"Fine", headers or [])
        response = UpstreamResponse(head, [], self, self._give_up, bodyless=False)
        response.complete = complete
        self.pending.callback(response)
        if early:
            response.received(early)
        if complete:
            response.ended(DONE)
        return response

    def _give_up(self) -> None:
        self.given_up += 1

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")


@pytest.fixture
def relayed() -> Relayed:
    return Relayed()


def test_the_head_goes_on_less_what_is_hop_by_hop(relayed: Relayed) -> None:
    headers = [(b"X-A", b"1"), (b"Connection", b"close, x-b"), (b"x-b", b"2"), (b"Set-Cookie", b"a"), (b"X-A", b"3")]
    relayed.respond(201, headers)
    assert relayed.request.events[0] == ("head", 201, b"Fine", [(b"X-A", b"1"), (b"Set-Cookie", b"a"), (b"X-A", b"3")])
    assert relayed.request.events[-1] == "flush"


def test_a_small_response_leaves_in_one_piece(relayed: Relayed) -> None:
    relayed.respond(early=b"whole", complete=True)
    assert relayed.request.written == [(b"whole", True)]
    assert ("producer", True) not in relayed.request.events
    assert relayed.request.context.outcome == "completed"


@pytest.mark.parametrize("options", [{"code": 204}, {"code": 304}, {"headers": [(b"Content-Length", b"0")]}])
def test_a_response_without_a_body_ends_with_its_head(relayed: Relayed, options: dict[str, Any]) -> None:
    relayed.respond(complete=True, **options)
    assert relayed.request.written == [(b"", True)]
    assert ("producer", True) not in relayed.request.events
    assert relayed.calls == []


def test_each_piece_goes_on_as_it_comes_and_the_last_ends_the_response(relayed: Relayed) -> None:
    response = relayed.respond()
    for piece in (b"one", b"two"):
        response.received(piece)
        assert relayed.request.written[-1] == (piece, False)
    response.complete = True
    response.received(b"three")
    response.ended(DONE)
    assert relayed.request.written == [(b"one", False), (b"two", False), (b"three", True)]
    assert relayed.request.context.outcome == "completed"


def test_trailers_follow_the_last_piece_less_those_that_frame_or_authenticate(relayed: Relayed) -> None:
    response = relayed.respond()
    response.trailers += [(b"X-Sum", b"1"), (b"Content-Length", b"9"), (b"Set-Cookie", b"a"), (b"connection", b"x")]
    response.ended(DONE)
    assert relayed.request.trailers == [(b"X-Sum", b"1")]


def test_an_end_without_a_last_piece_ends_the_response(relayed: Relayed) -> None:
    response = relayed.respond()
    response.received(b"one")
    response.ended(DONE)
    assert relayed.request.written == [(b"one", False), (b"", True)]


def test_a_response_that_breaks_off_is_cut_and_says_why_in_the_log(relayed: Relayed) -> None:
    response = relayed.respond(early=b"one")
    response.ended(Failure(ResponseFailed([Failure(UpstreamTimeout("too slow"))])))
    assert relayed.request.events[-1] == "abort"
    assert (relayed.request.context.outcome, relayed.request.context.error_code) == (
        "upstream_failed",
        "upstream_timeout",
    )
    assert relayed.request.written == [(b"one", False)]


def test_another_break_counts_as_a_protocol_error(relayed: Relayed) -> None:
    response = relayed.respond()
    response.ended(Failure(ResponseFailed([Failure(ValueError())])))
    assert relayed.request.context.error_code == "upstream_protocol_error"


def test_an_unreachable_server_gets_an_error_response(relayed: Relayed) -> None:
    relayed.pending.errback(UpstreamUnreachable("not there"))
    assert relayed.request.answered.code == "upstream_unreachable"
    assert relayed.request.context.outcome == "upstream_failed"


def test_a_request_without_a_socket_for_it_is_refused_and_was_not_sent(relayed: Relayed) -> None:
    relayed.request.context.sent = True
    relayed.pending.errback(OutOfSockets("none left", retry_after=1))
    assert (relayed.request.answered.status, relayed.request.answered.code) == (503, "out_of_sockets")
    context = relayed.request.context
    assert (context.outcome, context.sent) == ("refused", False)


def test_an_internal_error_gets_an_error_response(relayed: Relayed) -> None:
    relayed.pending.errback(ZeroDivisionError())
    [failure] = relayed.request.failures
    assert failure.check(ZeroDivisionError)
    assert relayed.request.context.outcome == "failed"


def test_a_client_that_leaves_before_the_head_gives_up_the_request(relayed: Relayed) -> None:
    relayed.relay.cancel()
    assert relayed.given_up == 1
    assert relayed.request.context.outcome == "client_disconnected"
    assert relayed.request.events == []
    assert relayed.request.answered is None


def test_a_client_that_leaves_during_the_body_gives_up_the_response(relayed: Relayed) -> None:
    response = relayed.respond(early=b"one")
    relayed.relay.cancel()
    response.received(b"late")
    response.ended(Failure(ResponseFailed([Failure(CancelledError())])))
    assert relayed.given_up == 1
    assert relayed.request.written == [(b"one", False)]
    assert "abort" not in relayed.request.events
    assert relayed.request.context.outcome == "client_disconnected"


def test_a_client_that_leaves_after_the_end_changes_nothing(relayed: Relayed) -> None:
    relayed.respond(early=b"whole", complete=True)
    relayed.relay.cancel()
    assert relayed.request.context.outcome == "completed"
    assert relayed.given_up == 0


def test_a_slow_client_slows_the_server_from_the_first_moment_on(relayed: Relayed) -> None:
    relayed.request.registerProducer = lambda producer, streaming: producer.pauseProducing()
    relayed.respond(early=b"one")
    assert relayed.calls == ["pause"]
    relayed.relay.resumeProducing()
    assert relayed.calls == ["pause", "resume"]


def test_a_response_that_has_ended_is_neither_paused_nor_resumed(relayed: Relayed) -> None:
    response = relayed.respond()
    response.ended(DONE)
    relayed.relay.pauseProducing()
    relayed.relay.resumeProducing()
    assert relayed.calls == []


# the request's body


class Server:
    """Receives the body."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.taken.append(data)


def uploading(**options: Any) -> tuple[Any, RequestBody, Server, list[object]]:
    request: Any = FakeRequest(body_complete=False, **options)
    body = RequestBody(request)
    server = Server()
    ended: list[object] = []
    body.startProducing(server).addBoth(ended.append)  # type: ignore[arg-type]  # it is all of a consumer that counts
    return request, body, server, ended


def test_a_body_is_a_body_producer_and_knows_its_length() -> None:
    known: Any = FakeRequest(body_length=7, body_complete=False)
    unknown: Any = FakeRequest(body_length=None, body_complete=False)
    assert verifyObject(IBodyProducer, RequestBody(known))
    assert verifyObject(IRelayedBody, RequestBody(known))
    assert RequestBody(known).length == 7
    assert RequestBody(unknown).length is UNKNOWN_LENGTH


@pytest.mark.parametrize(("traced", "kept"), [(False, [b"traceparent", b"x-sum"]), (True, [b"x-sum"])])
def test_a_trailer_does_not_replace_the_trace_that_the_server_was_told(traced: bool, kept: list[bytes]) -> None:
    request: Any = FakeRequest(body_length=None, body_complete=False)
    request.trailers = [(b"traceparent", b"00-1-2-01"), (b"x-sum", b"7")]
    request.context.trace = object() if traced else None
    assert [name for name, _ in RequestBody(request).trailers] == kept


def test_each_piece_of_a_body_goes_on_as_it_comes() -> None:
    request, _, server, ended = uploading(body=b"one")
    request.sink(b"two", False)
    assert (server.taken, ended) == ([b"one", b"two"], [])
    request.sink(b"three", True)
    assert (server.taken, ended) == ([b"one", b"two", b"three"], [None])


def test_a_body_s_trailers_go_on_less_those_that_a_server_must_not_take_for_headers() -> None:
    request: Any = FakeRequest(body_length=None, body_complete=False)
    body = RequestBody(request, frozenset((b"x-vllm-priority",)))
    request.trailers += [(b"X-Sum", b"1"), (b"X-VLLM-Priority", b"0"), (b"Authorization", b"Bearer x")]
    assert body.trailers == [(b"X-Sum", b"1")]


def test_a_slow_server_slows_the_client() -> None:
    request, body, _, _ = uploading()
    body.pauseProducing()
    body.resumeProducing()
    assert request.events == ["pause body", "resume body"]


def test_the_rest_of_a_body_after_an_early_response_is_dropped() -> None:
    request, body, server, ended = uploading()
    request.sink(b"one", False)
    body.stopProducing()
    request.sink(b"two", False)
    request.sink(b"", True)
    assert (server.taken, ended) == ([b"one"], [])
    assert request.events == ["resume body"]
