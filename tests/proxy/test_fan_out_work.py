"""An act on several servers: sent to all at once, answered once, given up with its client."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from tests.proxy.gateway_fakes import FakeRequest, server
from tests.upstreams.fleets import make_servers
from twisted_vllm.config.settings import Server
from twisted_vllm.errors import UpstreamUnreachable
from twisted_vllm.http.client.response import failed
from twisted_vllm.proxy.fan_out import MAX_ANSWER
from twisted_vllm.proxy.fan_out_work import UNWELL_TIMEOUT, FanOutWork

SERVERS = [server("gpu-1:8000"), server("gpu-2:8000")]


class Response:
    """A response that the test sends."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.stopped = False
        self.protocol: Any = None

    def deliverBody(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self)

    def stopProducing(self) -> None:
        self.stopped = True

    def end(self, body: bytes = b"", reason: Failure | None = None) -> None:
        self.protocol.dataReceived(body)
        self.protocol.connectionLost(reason or Failure(ResponseDone()))


class Lab:
    """One act, and the servers that it goes to.

    Attributes:
        asked: the requests by their server's name.
        cancelled: the servers whose request was given up.
    """

    def __init__(self, *, named: bool = True, dead: tuple[str, ...] = ()) -> None:
        self.clock = Clock()
        servers = make_servers()
        self.states = [servers.state_of(each) for each in SERVERS]
        for state in self.states:
            if state.name in dead:
                state.breaker.declare_dead(0.0, "refused", 5.0)
        self.asked: dict[str, Deferred[Any]] = {}
        self.cancelled: list[str] = []
        self.request = FakeRequest(uri=b"/vllm/sleep")
        FanOutWork(
            self.request,  # type: ignore[arg-type]  # a fake
            self.states,
            self._send,
            self.clock,
            named=named,
        ).start()

    def _send(self, server: Server) -> Deferred[Any]:
        asked: Deferred[Any] = Deferred(lambda _: self.cancelled.append(server.name))
        self.asked[server.name] = asked
        return asked

    def answer(self, number: int, code: int = 200) -> Response:
        response = Response(code)
        self.asked[SERVERS[number].name].callback(response)
        return response

    @property
    def answered(self) -> list[tuple[int, Any]]:
        return [(event[1], json.loads(event[3])) for event in self.request.events if event[0] == "respond"]


def test_all_servers_are_asked_at_once_and_answer_in_their_order() -> None:
    lab = Lab()
    assert list(lab.asked) == ["gpu-1:8000", "gpu-2:8000"]
    lab.answer(1).end(b'{"status":"sleeping"}')
    assert lab.answered == []
    lab.answer(0).end()
    [(status, document)] = lab.answered
    assert status == 200
    assert [(each["server"], each["status"], each["body"]) for each in document["servers"]] == [
        ("gpu-1:8000", 200, None),
        ("gpu-2:8000", 200, {"status": "sleeping"}),
    ]
    assert (lab.request.context.outcome, lab.request.context.error_code) == ("completed", "")
    assert lab.request.work is None


@pytest.mark.parametrize("how", ["refused", "cut", "large", "unexpected"])
def test_a_server_that_fails_is_told_with_its_reason(how: str, logged_failures: Any) -> None:
    lab = Lab()
    lab.answer(0).end(b"Success")
    if how == "refused":
        lab.asked["gpu-2:8000"].errback(UpstreamUnreachable("No connection could be made."))
    elif how == "unexpected":
        lab.asked["gpu-2:8000"].errback(RuntimeError("secret"))
    else:
        response = lab.answer(1)
        if how == "cut":
            response.end(b"Suc", failed(UpstreamUnreachable("It closed.")))
        else:
            response.end(b"x" * (MAX_ANSWER + 1))
            assert response.stopped
    [(status, document)] = lab.answered
    assert (status, document["error"]["code"]) == (502, "not_all_servers")
    assert document["servers"][0]["body"] == "Success"
    told = document["servers"][1]
    assert told["status"] is None
    assert (
        told["error"]["code"]
        == {
            "refused": "upstream_unreachable",
            "cut": "upstream_unreachable",
            "large": "upstream_protocol_error",
            "unexpected": "internal_error",
        }[how]
    )
    assert len(logged_failures.flush(RuntimeError)) == (how == "unexpected")
    assert "secret" not in json.dumps(document)
    assert (lab.request.context.outcome, lab.request.context.error_code) == ("upstream_failed", "not_all_servers")


def test_who_may_not_see_the_names_of_servers_gets_numbers() -> None:
    lab = Lab(named=False)
    lab.answer(0).end()
    lab.answer(1, 500).end(b"Internal Server Error")
    [(_, document)] = lab.answered
    assert [each["server"] for each in document["servers"]] == ["server 1", "server 2"]
    assert "gpu" not in json.dumps(document)


def test_a_client_that_leaves_ends_all_requests() -> None:
    lab = Lab()
    reading = lab.answer(0)
    lab.request.work.cancel()
    assert reading.stopped
    assert lab.cancelled == ["gpu-2:8000"]
    assert lab.answered == []
    assert lab.request.context.outcome == "client_disconnected"
    assert not any(state.awaiting for state in lab.states)


def test_a_server_that_is_found_dead_is_not_waited_for() -> None:
    lab = Lab()
    lab.answer(0).end()
    [attempt] = lab.states[1].awaiting
    attempt.server_died("silent")
    [(status, document)] = lab.answered
    assert status == 502
    assert document["servers"][1]["error"]["code"] == "upstream_unreachable"
    assert lab.cancelled == ["gpu-2:8000"]
    assert not any(state.awaiting for state in lab.states)


def test_a_server_that_was_unwell_before_has_less_time() -> None:
    lab = Lab(dead=("gpu-2:8000",))
    lab.answer(0).end()
    assert lab.answered == []
    lab.clock.advance(UNWELL_TIMEOUT)
    [(status, document)] = lab.answered
    assert (status, document["servers"][1]["error"]["code"]) == (502, "upstream_timeout")


def test_a_server_that_was_unwell_may_still_do_it() -> None:
    lab = Lab(dead=("gpu-2:8000",))
    lab.answer(0).end()
    lab.answer(1).end()
    assert lab.answered[0][0] == 200
    assert not lab.clock.getDelayedCalls()
