"""What waits for a server: sent in turn, refused when it waits in vain, and forgotten when its client leaves."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent
from zope.interface.verify import verifyObject

from tests.proxy.gateway_fakes import FakeAgent, FakeRequest, SentRequest, server
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Server
from twisted_vllm.errors import GatewayError, ServerBusy
from twisted_vllm.http.client.interfaces import IUpstreamAgent
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.proxy.relay import Relay, RequestBody
from twisted_vllm.upstreams.queue import QueueingAgent


class Asked:
    """A request that was sent through the queue, and what became of it.

    Attributes:
        number: which of the lab's requests it is.
        result: what the queue returned.
        response: what that fired with.
        error: what it failed with.
        queued: what was said of its time in the queue.
    """

    def __init__(self, lab: Lab, where: Server, body: Any = None) -> None:
        self.number = len(lab.asked)
        self.response: object = None
        self.error: BaseException | None = None
        self.queued: list[tuple[float | None, bool]] = []
        self._lab = lab
        self.result: Deferred[Any] = lab.queues.request(
            b"POST",
            where.url + b"/%d" % self.number,
            None,
            body,
            left_queue=self._note,
            server=where,
        )
        self.result.addCallbacks(self._answered, self._failed)
        lab.asked.append(self)

    @property
    def sent(self) -> SentRequest:
        """The request as it was sent on."""
        [found] = [sent for sent in self._lab.agent.sent if sent.url.endswith(b"/%d" % self.number)]
        return found

    def end(self) -> None:
        """Let the exchange end."""
        self.sent.end()

    def leave(self) -> None:
        """The client goes."""
        self.result.cancel()

    def _note(self, seconds: float | None, goes_on: bool) -> None:
        self.queued.append((seconds, goes_on))

    def _answered(self, response: object) -> None:
        self.response = response

    def _failed(self, failure: Failure) -> None:
        self.error = failure.value


class Lab:
    """Queues before an agent that keeps what it was to send, or fails it."""

    def __init__(self, *servers: Server) -> None:
        self.clock = Clock()
        self.deadlines = DeadlineSweeper(self.clock)
        self.agent = FakeAgent()
        self.asked: list[Asked] = []
        agent: Any = self.agent
        self.queues = QueueingAgent(agent, servers, self.deadlines, self.clock.seconds)

    def ask(self, where: Server, body: Any = None) -> Asked:
        return Asked(self, where, body)

    @property
    def sent(self) -> list[Asked]:
        """What was sent on, in order."""
        return [self.asked[int(sent.url.rpartition(b"/")[2])] for sent in self.agent.sent]

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.sweep()

    def assert_idle(self) -> None:
        """No slot is taken and nothing waits."""
        assert len(self.queues) == len(self.deadlines) == 0
        assert " 0 of " in repr(self.queues)
        assert ", 0 of " in repr(self.queues)


def capped(limit: int = 1, queue: int = 100, seconds: float | None = 30.0) -> Server:
    found = server()
    timeouts = attrs.evolve(found.timeouts, queue=seconds)
    return attrs.evolve(found, max_concurrent_requests=limit, max_queued_requests=queue, timeouts=timeouts)


def test_it_is_an_agent() -> None:
    assert verifyObject(IAgent, Lab().queues)
    assert verifyObject(IUpstreamAgent, Lab().queues)


def test_a_server_without_a_cap_takes_everything() -> None:
    lab = Lab(server())
    assert not lab.queues.needed
    asked = [lab.ask(server()) for _ in range(500)]
    assert lab.sent == asked


def test_what_is_over_the_cap_is_sent_in_turn_as_others_end() -> None:
    where = capped(2)
    lab = Lab(where)
    assert lab.queues.needed
    first, second, third, fourth = (lab.ask(where) for _ in range(4))
    assert lab.sent == [first, second]
    assert len(lab.queues) == 2
    second.end()
    assert lab.sent == [first, second, third]
    second.end()
    assert lab.sent == [first, second, third], "a slot was freed twice"
    first.end()
    assert lab.sent == [first, second, third, fourth]
    third.end()
    fourth.end()
    lab.assert_idle()


@pytest.mark.parametrize("waits", [False, True])
def test_the_request_and_its_response_pass_through(waits: bool) -> None:
    where = capped(1)
    lab = Lab(where)
    headers = Headers()
    if waits:
        first = lab.ask(where)
    result = lab.queues.request(b"PUT", where.url + b"/x", headers, b"body", server=where)
    if waits:
        first.end()
    sent = lab.agent.sent[-1]
    assert (sent.method, sent.url, sent.headers, sent.body) == (b"PUT", where.url + b"/x", headers, b"body")
    assert sent.options["server"] is where
    found: list[object] = []
    result.addCallback(found.append)
    response = object()
    sent.result.callback(response)
    assert found == [response]
    lab.ask(where)
    assert lab.agent.sent[-1] is sent, "its slot is free when the exchange has ended, not before"
    sent.end()
    assert lab.agent.sent[-1] is not sent


def test_a_full_queue_refuses_at_once() -> None:
    where = capped(1, queue=1)
    lab = Lab(where)
    first, second, third = (lab.ask(where) for _ in range(3))
    assert isinstance(third.error, ServerBusy)
    assert (third.error.status, third.error.code, third.error.retry_after) == (503, "server_busy", 1)
    assert third.queued == [(None, False)]
    first.end()
    assert lab.sent == [first, second]


def test_what_has_waited_too_long_is_refused_and_frees_nothing() -> None:
    where = capped(1, seconds=30)
    lab = Lab(where)
    first, second = lab.ask(where), lab.ask(where)
    lab.pass_time(29)
    third = lab.ask(where)
    errors = [second.error]
    lab.pass_time(2)
    errors.append(second.error)
    assert errors[0] is None
    assert isinstance(errors[1], ServerBusy)
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
    context = relay.context
    context.sent = True
    relay.await_response(lab.queues.request(b"POST", where.url + b"/1", server=where, left_queue=context.left_queue))
    before = context.queued
    lab.pass_time(2.5)
    if ending == "its turn":
        first.end()
    elif ending == "its client left":
        relay.cancel()
    else:
        lab.pass_time(2)
    assert (before, context.queued) == (None, 4.5 if ending == "too late" else 2.5)
    assert context.sent is (ending == "its turn")


def test_what_did_not_wait_has_no_time_in_the_queue() -> None:
    where = capped(1)
    lab = Lab(where)
    asked = lab.ask(where)
    asked.end()
    assert asked.queued == []


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
    assert isinstance(second.error, CancelledError)
    assert second.queued == [(0.0, False)]
    third = lab.ask(where)
    assert third.error is None
    first.end()
    assert lab.sent == [first, third]
    third.leave()
    assert third.sent.cancelled
    fourth = lab.ask(where)
    assert lab.sent == [first, third, fourth]
    fourth.leave()
    assert fourth.sent.cancelled
    lab.assert_idle()


def test_what_fails_at_once_makes_room_for_all_that_wait() -> None:
    where = capped(1, queue=2000)
    lab = Lab(where)
    first, *others = [lab.ask(where) for _ in range(2000)]
    lab.agent.error = GatewayError("the server is not there")
    first.end()
    assert lab.sent == [first, *others]
    assert all(asked.error is lab.agent.error for asked in others)
    lab.assert_idle()


def test_one_that_is_given_up_while_its_turn_comes_is_not_sent() -> None:
    where = capped(1)
    lab = Lab(where)
    first, second, third, fourth = (lab.ask(where) for _ in range(4))
    # the second's failure is told before the third, whose turn it is then, is sent
    second.result.addCallback(lambda _: third.leave())
    lab.agent.error = GatewayError("the server is not there")
    first.end()
    assert lab.sent == [first, second, fourth]
    assert isinstance(third.error, CancelledError)
    lab.assert_idle()


def test_a_fault_of_our_own_is_answered_and_does_not_stop_the_rest(logged_failures: Any) -> None:
    where = capped(1)
    lab = Lab(where)
    first, second, third = (lab.ask(where) for _ in range(3))
    lab.agent.fault = ZeroDivisionError()
    first.end()
    assert [type(asked.error) for asked in (second, third)] == [GatewayError, GatewayError]
    assert len(logged_failures.flush(ZeroDivisionError)) == 2
    with pytest.raises(ZeroDivisionError):
        lab.queues.request(b"GET", where.url + b"/", server=where)
    lab.agent.fault = None
    assert lab.ask(where) in lab.sent


def test_servers_of_one_address_share_their_slots_whatever_their_keys() -> None:
    one = capped(1)
    same = attrs.evolve(one, api_key=Secret("another"))
    other = attrs.evolve(one, port=9, host_header=b"gpu-1:9")
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


def test_a_server_whose_url_begins_with_another_s_has_no_part_in_its_queue() -> None:
    capped_below = attrs.evolve(capped(1), base_path=b"/vllm")
    plain = server()
    lab = Lab(plain, capped_below)
    first, second = lab.ask(capped_below), lab.ask(capped_below)
    third = Asked(lab, attrs.evolve(plain, base_path=b"/vllm", max_concurrent_requests=None))
    assert lab.sent == [first, third]
    first.end()
    assert lab.sent == [first, third, second]
