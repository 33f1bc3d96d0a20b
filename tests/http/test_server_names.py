"""Servers that are reached by a name: all its addresses, dead ones, and names that change or cannot be resolved."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from tests.http.fake_resolver import FakeResolver
from tests.http.upstream_harness import OK, Asked, Lab, ServerEnd, make_server
from twisted_vllm.config.settings import Server, Timeouts
from twisted_vllm.errors import UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.http.client.endpoints import ATTEMPT_DELAY
from twisted_vllm.http.client.names import FRESH, GIVE_UP, MAX_RESOLUTIONS, PATIENCE, RETRY

NAME = "gpu.example"
A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"
SERVER = make_server(Timeouts(connect=5.0), host=NAME)


class NamedLab(Lab):
    """A lab with a resolver.

    Attributes:
        resolver: resolves every name.
        lines: what was logged.
    """

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self.resolver = FakeResolver(*addresses)
        self.clock.installNameResolver(self.resolver)
        self.lines: list[str] = []

    def to(self, server: Server = SERVER) -> Asked:
        return self.ask(server=server)

    @property
    def tried(self) -> list[str]:
        """The addresses of all attempts to connect, in order."""
        return [host for host, *_ in self.clock.tcpClients]

    def answered(self) -> tuple[Asked, ServerEnd]:
        """Ask on a new connection, which then is idle."""
        asked = self.to()
        end = self.accept()
        end.send(OK)
        assert asked.body == b"ok"
        return asked, end

    def fail(self, reason: Exception) -> None:
        self.refuse(reason)


@pytest.fixture
def logged() -> Any:
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    observer: ILogObserver = observe  # type: ignore[assignment]  # a function provides it
    globalLogPublisher.addObserver(observer)
    yield lines
    globalLogPublisher.removeObserver(observer)


# all addresses are used


def test_requests_in_flight_are_spread_over_all_addresses() -> None:
    lab = NamedLab(A, B, C)
    for _ in range(9):
        lab.to()
        lab.accept()
    assert Counter(lab.tried) == {A: 3, B: 3, C: 3}
    assert lab.resolver.asked == [NAME]


def test_a_request_goes_to_the_address_with_the_fewest_in_flight_also_over_idle_connections() -> None:
    lab = NamedLab(A, B)
    ends = {}
    for _ in range(2):
        lab.to()
        ends[lab.tried[-1]] = lab.accept()
    assert set(ends) == {A, B}
    ends[A].send(OK)
    lab.to()
    lab.to()
    assert lab.attempts == 3, "the idle connection to A was used"
    assert ends[A].received.count(b"GET ") == 2


def test_a_name_with_one_address_has_one_pool() -> None:
    lab = NamedLab(A)
    lab.answered()
    assert lab.to().is_pending
    assert lab.attempts == 1


# dead addresses


def test_a_dead_address_costs_no_request_and_is_passed_over(logged: list[str]) -> None:
    lab = NamedLab(A, B)
    asked = lab.to()
    dead = lab.tried[-1]
    lab.fail(ConnectionRefusedError())
    assert asked.is_pending
    alive = lab.tried[-1]
    assert {dead, alive} == {A, B}
    lab.accept().send(OK)
    assert asked.body == b"ok"
    for _ in range(5):
        lab.to()
        if lab.attempts > len(lab.ends) + 1:
            lab.accept()
    assert Counter(lab.tried)[dead] == 1
    assert [line for line in logged if "passed over" in line] == [
        f"{SERVER.name} is passed over at {dead}: it refuses connections: nothing listens on its port 8000"
    ]


def test_an_address_that_does_not_answer_delays_a_request_by_a_quarter_of_a_second() -> None:
    lab = NamedLab(A, B)
    asked = lab.to()
    silent = lab.tried[0]
    lab.clock.advance(ATTEMPT_DELAY)
    assert lab.attempts == 2
    lab.accept().send(OK)
    assert asked.body == b"ok"
    assert lab.clock.connectors[0].stoppedConnecting
    lab.to()
    lab.to()
    assert Counter(lab.tried)[silent] == 1, "it is passed over"


def test_an_address_that_is_well_again_is_used_again(logged: list[str]) -> None:
    lab = NamedLab(A, B)
    lab.to()
    dead = lab.tried[0]
    lab.fail(ConnectionRefusedError())
    lab.accept()
    lab.advance(5.5)
    asked = lab.to()
    assert lab.tried[-1] == dead
    lab.accept().send(OK)
    assert asked.body == b"ok"
    assert f"{SERVER.name} accepts connections at {dead} again" in logged


def test_where_no_address_accepts_the_first_reason_is_told_and_nobody_waits(logged: list[str]) -> None:
    lab = NamedLab(A, B)
    asked = lab.to()
    lab.fail(ConnectionRefusedError())
    lab.fail(ConnectError(113, "No route to host"))
    assert isinstance(asked.error, UpstreamUnreachable)
    assert asked.error.message == "The vLLM server cannot be reached."
    assert f"No connection to {SERVER.name}: it refuses connections: nothing listens on its port 8000" in logged
    lab.assert_nothing_left()


def test_giving_up_ends_every_attempt() -> None:
    lab = NamedLab(A, B)
    asked = lab.to()
    lab.clock.advance(ATTEMPT_DELAY)
    asked.result.cancel()
    assert [connector.stoppedConnecting for connector in lab.clock.connectors] == [True, True]
    lab.assert_nothing_left()


def test_all_attempts_together_take_no_longer_than_one_may() -> None:
    lab = NamedLab(A, B)
    asked = lab.to()
    lab.advance(4.5)
    assert asked.is_pending
    lab.advance(1.0)
    assert isinstance(asked.error, UpstreamTimeout)


# names that change


def test_a_name_in_use_is_resolved_again_and_its_new_addresses_are_used(logged: list[str]) -> None:
    lab = NamedLab(A)
    asked = lab.to()
    lab.accept()
    lab.resolver.addresses = (B,)
    lab.advance(FRESH + 1)
    assert lab.resolver.asked == [NAME, NAME]
    lab.to()
    assert lab.tried == [A, B]
    assert asked.is_pending, "what runs goes on"
    assert f"{NAME} has other addresses now: {B}" in logged


def test_connections_to_an_address_that_is_gone_take_no_other_request() -> None:
    lab = NamedLab(A, B)
    ends = {}
    for _ in range(2):
        lab.to()
        ends[lab.tried[-1]] = lab.accept()
    ends[A].send(OK)
    lab.resolver.addresses = (B,)
    lab.advance(3.0)
    lab.agent.reconfigure([SERVER], None, {})
    assert not ends[A].is_open, "it was idle"
    ends[B].send(OK)
    lab.to()
    assert lab.attempts == 2, "the connection to B was kept"
    lab.resolver.addresses = (C,)
    lab.agent.reconfigure([SERVER], None, {})
    assert ends[B].is_open
    ends[B].send(OK)
    assert not ends[B].is_open
    lab.to()
    assert lab.tried[-1] == C


def test_a_reload_resolves_at_once() -> None:
    lab = NamedLab(A)
    lab.answered()
    lab.resolver.addresses = (B,)
    lab.agent.reconfigure([SERVER], None, {})
    lab.to()
    assert lab.tried == [A, B]


def test_a_name_that_nobody_uses_is_not_resolved_and_the_next_request_gets_a_fresh_answer() -> None:
    lab = NamedLab(A)
    _, end = lab.answered()
    end.close()
    lab.advance(10 * FRESH)
    assert lab.resolver.asked == [NAME]
    lab.resolver.addresses = (B,)
    lab.to()
    assert lab.tried == [A, B]


def test_a_server_that_is_not_configured_any_more_leaves_nothing() -> None:
    lab = NamedLab(A, B)
    lab.answered()
    lab.agent.reconfigure([], None, {})
    lab.assert_nothing_left()


def test_a_server_that_is_forgotten_while_it_works_is_not_resolved_any_more() -> None:
    lab = NamedLab(A, B)
    for _ in range(3):
        lab.to()
        lab.accept()
    lab.agent.reconfigure([], None, {})
    lab.ends[0].send(OK)
    assert not lab.ends[0].is_open
    lab.resolver.addresses = (C,)
    lab.advance(3 * FRESH)
    assert lab.resolver.asked == [NAME]
    for end in lab.ends[1:]:
        end.send(OK)
    lab.assert_nothing_left()


# resolvers that fail


def test_a_resolver_that_fails_keeps_the_last_known_addresses(logged: list[str]) -> None:
    lab = NamedLab(A)
    lab.to()
    lab.accept()
    lab.resolver.addresses = ()
    lab.advance(FRESH + 1)
    lab.to()
    lab.accept()
    assert lab.tried == [A, A]
    lab.advance(3 * RETRY)
    told = [line for line in logged if "cannot be resolved" in line]
    assert told == [
        f"{NAME} cannot be resolved (DNS lookup failed: no address of {NAME}.): its last known addresses are used, {A}"
    ]
    lab.resolver.addresses = (B,)
    lab.advance(RETRY + 1)
    assert f"{NAME} is resolved again" in logged
    lab.to()
    assert lab.tried[-1] == B


def test_a_resolver_that_hangs_delays_one_request_by_a_second_and_no_other(logged: list[str]) -> None:
    lab = NamedLab(A)
    _, end = lab.answered()
    end.close()
    lab.advance(FRESH + 1)
    lab.resolver.addresses = None
    first = lab.to()
    assert lab.attempts == 1
    lab.clock.advance(PATIENCE)
    assert lab.attempts == 2
    lab.accept().send(OK)
    assert first.body == b"ok"
    assert f"The resolver gives no answer for {NAME}: its last known addresses are used, {A}" in logged
    lab.to()
    lab.to()
    assert lab.tried == [A] * 3
    assert len(lab.resolver.asked) == 2, "it is asked once at a time"
    lab.advance(GIVE_UP + RETRY + 1)
    assert len(lab.resolver.asked) == 3, "it is asked again"
    lab.resolver.release(B)
    assert f"{NAME} is resolved again" in logged
    lab.agent.close()


def test_a_name_that_was_never_known_is_an_unreachable_server(logged: list[str]) -> None:
    lab = NamedLab()
    asked = lab.to()
    assert isinstance(asked.error, UpstreamUnreachable)
    assert NAME not in asked.error.message
    assert f"No connection to {SERVER.name}: its name is not known" in logged
    lab.resolver.addresses = (A,)
    lab.to()
    assert lab.tried == [A]


def test_few_names_are_resolved_at_a_time() -> None:
    lab = NamedLab()
    lab.resolver.addresses = None
    for number in range(MAX_RESOLUTIONS + 3):
        lab.to(make_server(host=f"gpu-{number}.example"))
    assert len(lab.resolver.asked) == MAX_RESOLUTIONS
    lab.resolver.release(A)
    assert len(lab.resolver.asked) == MAX_RESOLUTIONS + 3
    assert lab.attempts == MAX_RESOLUTIONS
    lab.agent.close()
    lab.turn()


def test_a_resolver_that_raises_is_a_name_that_is_not_known() -> None:
    lab = NamedLab(A)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no resolver")

    lab.resolver.resolveHostName = broken  # type: ignore[method-assign]
    assert isinstance(lab.to().error, UpstreamUnreachable)
