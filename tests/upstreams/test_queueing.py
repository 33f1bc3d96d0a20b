"""What waits for a server: sent in turn, told when it waits in vain, and forgotten when its client leaves."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from tests.proxy.gateway_fakes import FakeRequest, server
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Server
from twisted_vllm.errors import GatewayError, ServerBusy
from twisted_vllm.http.client.exchange import UpstreamExchange
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.proxy.relay import Relay, RequestBody
from twisted_vllm.upstreams.queue import UpstreamQueues


class ResponseHandler:
    """Is told how its exchange ended, and ends its request then, as the gateway does."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.error: BaseException | None = None
        self.request = FakeRequest()
        self.context = self.request.context
        self.exchange: Any = None

    def responded(self, response: object) -> None: ...

    def informational(self, status: int, reason: bytes, headers: object) -> None: ...

    def failed(self, error: BaseException) -> None:
        self.error = error
        self.end()

    def end(self) -> None:
        self.lab.queues.finished(self.context)

    def leave(self) -> None:
        """The client goes."""
        self.exchange.cancel()
        self.end()


class Lab:
    """Queues before a sender that keeps what it was to send, or fails it."""

    def __init__(self, *servers: Server) -> None:
        self.clock = Clock()
        self.sweeper = DeadlineSweeper(self.clock)
        self.sent: list[ResponseHandler] = []
        self.fault: Exception | None = None
        self.failing: GatewayError | None = None
        self.queues = UpstreamQueues(servers, self._send, self.sweeper, self.clock.seconds)

    def _send(self, exchange: UpstreamExchange) -> None:
        exchange.at = self
        if self.fault is not None:
            raise self.fault
        self.sent.append(exchange.asker)  # type: ignore[arg-type]  # the tests' own
        if self.failing is not None:
            exchange.fail(self.failing)

    def give_up(self, exchange: UpstreamExchange) -> None: ...

    def ask(self, where: Server, body: Any = None) -> ResponseHandler:
        asker = ResponseHandler(self)
        asker.exchange = UpstreamExchange(where, b"POST", b"", body, asker)
        self.queues.forward(asker.exchange)
        return asker

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.sweeper.sweep()


def capped(limit: int = 1, queue: int = 100, seconds: float | None = 30.0) -> Server:
    found = server()
    timeouts = attrs.evolve(found.timeouts, queue=seconds)
    return attrs.evolve(found, max_concurrent_requests=limit, max_queued_requests=queue, timeouts=timeouts)


def test_a_server_without_a_cap_takes_everything() -> None:
    lab = Lab(server())
    assert not lab.queues.needed
    askers = [lab.ask(server()) for _ in range(500)]
    assert lab.sent == askers


def test_what_is_over_the_cap_is_sent_in_turn_as_others_end() -> None:
    where = capped(2)
    lab = Lab(where)
    assert lab.queues.needed
    first, second, third, fourth = (lab.ask(where) for _ in range(4))
    assert lab.sent == [first, second]
    second.end()
    assert lab.sent == [first, second, third]
    second.end()
    assert lab.sent == [first, second, third], "a slot was freed twice"
    first.end()
    assert lab.sent == [first, second, third, fourth]
    assert len(lab.sweeper) == 0


def test_a_full_queue_refuses_at_once() -> None:
    where = capped(1, queue=1)
    lab = Lab(where)
    first, second, third = (lab.ask(where) for _ in range(3))
    assert isinstance(third.error, ServerBusy)
    assert (third.error.status, third.error.code, third.error.retry_after) == (503, "server_busy", 1)
    first.end()
    assert lab.sent == [first, second]


def test_what_has_waited_too_long_is_refused_and_frees_nothing() -> None:
    where = capped(1, seconds=30)
    lab = Lab(where)
    first, second = lab.ask(where), lab.ask(where)
    lab.pass_time(29)
    third = lab.ask(where)
    assert second.error is None
    lab.pass_time(2)
    assert isinstance(second.error, ServerBusy)
    assert lab.sent == [first]
    first.end()
    assert lab.sent == [first, third]
    lab.pass_time(1000)
    assert third.error is None


@pytest.mark.parametrize("ending", ["its turn", "too late", "its client left"])
def test_how_long_it_waited_is_known_however_that_ended(ending: str) -> None:
    where = capped(1, seconds=3)
    lab = Lab(where)
    first = lab.ask(where)
    relay = Relay(FakeRequest())  # type: ignore[arg-type]  # all that it uses of a request
    relay.exchange = UpstreamExchange(where, b"POST", b"", None, relay)
    lab.queues.forward(relay.exchange)
    assert relay.context.queued is None
    lab.pass_time(2.5)
    if ending == "its turn":
        first.end()
    elif ending == "its client left":
        relay.cancel()
    else:
        lab.pass_time(2)
    assert relay.context.queued == (4.5 if ending == "too late" else 2.5)


def test_without_a_limit_it_waits_for_ever() -> None:
    where = capped(1, seconds=None)
    lab = Lab(where)
    first, second = lab.ask(where), lab.ask(where)
    lab.pass_time(1_000_000)
    first.end()
    assert lab.sent == [first, second]


def test_a_client_that_leaves_the_queue_leaves_its_place() -> None:
    where = capped(1, queue=1)
    lab = Lab(where)
    first, second = lab.ask(where), lab.ask(where)
    second.leave()
    third = lab.ask(where)
    assert third.error is None
    first.end()
    assert lab.sent == [first, third]
    third.leave()
    fourth = lab.ask(where)
    assert lab.sent == [first, third, fourth]


def test_what_fails_at_once_makes_room_for_all_that_wait() -> None:
    where = capped(1, queue=2000)
    lab = Lab(where)
    first, *others = [lab.ask(where) for _ in range(2000)]
    lab.failing = GatewayError("the server is not there")
    first.end()
    assert lab.sent == [first, *others]
    assert all(asker.error is lab.failing for asker in others)


def test_a_fault_of_our_own_is_answered_and_does_not_stop_the_rest(logged_failures: Any) -> None:
    where = capped(1)
    lab = Lab(where)
    first, second, third = (lab.ask(where) for _ in range(3))
    lab.fault = ZeroDivisionError()
    first.end()
    assert [type(asker.error) for asker in (second, third)] == [GatewayError, GatewayError]
    assert len(logged_failures.flush(ZeroDivisionError)) == 2
    lab.fault = None
    assert lab.ask(where) in lab.sent


def test_servers_of_one_address_share_their_slots_whatever_their_keys() -> None:
    one = capped(1)
    same = attrs.evolve(one, api_key=Secret("another"))
    other = attrs.evolve(one, port=9)
    lab = Lab(one, same, other)
    first, second, third = lab.ask(one), lab.ask(same), lab.ask(other)
    assert lab.sent == [first, third]
    first.end()
    assert lab.sent == [first, third, second]


def test_a_body_that_streams_stays_with_the_client_until_its_turn() -> None:
    where = capped(1)
    lab = Lab(where)
    first = lab.ask(where)
    request = FakeRequest(body_complete=False, body_length=100)
    body = RequestBody(request)  # type: ignore[arg-type]  # all that it uses of a request
    second = lab.ask(where, body)
    assert request.events == ["pause body"]
    first.end()
    assert lab.sent == [first, second]
    body.startProducing(StringTransport())
    assert request.events == ["pause body", "resume body"]


@pytest.mark.parametrize("note", [None, object()])
def test_a_request_that_asked_no_server_frees_nothing(note: object) -> None:
    where = capped(1)
    lab = Lab(where)
    lab.ask(where)
    request = FakeRequest()
    request.note = note
    lab.queues.finished(request)  # type: ignore[arg-type]  # all that it uses of a request
    lab.ask(where)
    assert len(lab.sent) == 1
