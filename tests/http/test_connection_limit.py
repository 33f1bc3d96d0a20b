"""Connections over the limit are refused with an error response and use few resources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from tests.http.server_harness import SiteHarness, TcpTransport, TlsTransport, get, read_answers
from twisted_vllm.config.settings import Limits
from twisted_vllm.http.net.open_files import MAX_REFUSED
from twisted_vllm.http.server.refused_connection import PATIENCE

CAP = 10


@pytest.fixture
def harness() -> SiteHarness:
    return SiteHarness(Limits(max_connections=CAP))


@pytest.fixture
def log() -> Iterator[list[tuple[str, str]]]:
    lines: list[tuple[str, str]] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append((event["log_level"].name, formatEvent(event)))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def fill(harness: SiteHarness) -> list[Any]:
    return [harness.connect() for _ in range(CAP)]


def test_a_connection_over_the_limit_gets_an_error_at_its_first_bytes(harness: SiteHarness) -> None:
    fill(harness)
    late = harness.connect()
    assert late.transport.value() == b""
    late.send(get()[:3])
    answer = late.answer()
    assert (answer.status, answer.error()["code"]) == (503, "too_many_connections")
    assert (answer.header(b"retry-after"), answer.closes, late.ended) == (b"1", True, True)
    assert answer.header(b"x-request-id")
    assert harness.streaming.rendered == []


def test_it_is_answered_once_whatever_else_it_sends(harness: SiteHarness) -> None:
    fill(harness)
    late = harness.connect()
    late.send(*[get()] * 50, b"x" * 1_000_000)
    assert len(late.answers()) == 1
    assert not late.transport.aborted, "the answer could be lost"


def test_over_tls_it_gets_the_error_as_well(harness: SiteHarness) -> None:
    fill(harness)
    late = harness.connect(TlsTransport())
    late.send(get())
    assert read_answers(late.transport.value())[0].status == 503
    assert late.gone


def test_an_idle_connection_over_the_limit_is_aborted(harness: SiteHarness) -> None:
    fill(harness)
    silent, lingering = harness.connect(), harness.connect()
    lingering.send(get())
    harness.pass_time(PATIENCE + 1)
    assert (silent.transport.aborted, lingering.transport.aborted) == (True, True)


def test_connections_within_the_limit_are_served_meanwhile_and_freed_places_are_reused(harness: SiteHarness) -> None:
    first, *others = fill(harness)
    harness.connect().send(get())
    first.send(get())
    assert first.answer().status == 200
    first.leave()
    late = harness.connect()
    late.send(get())
    assert late.answer().status == 200
    for client in (*others, late):
        client.leave()
    harness.pass_time(PATIENCE + 1)


def test_a_flood_is_closed_without_a_response(harness: SiteHarness) -> None:
    fill(harness)
    waiting = [harness.connect() for _ in range(MAX_REFUSED)]
    late = harness.connect()
    assert late.transport.aborted
    assert not any(client.transport.aborted for client in waiting)
    for client in waiting:
        client.leave()
    late = harness.connect()
    late.send(get())
    assert late.answer().status == 503


def test_a_burst_is_one_warning_however_many_it_refuses(harness: SiteHarness, log: list[tuple[str, str]]) -> None:
    served = fill(harness)
    for _ in range(3 * MAX_REFUSED):
        harness.connect()
    served.pop().leave()
    harness.connect()
    harness.connect()
    [told] = log
    assert told[0] == "warn"
    assert f"Over {CAP} client connections: more are refused until some have ended" in told[1]
    assert "limits.max_connections" in told[1]
    for client in served[:5]:
        client.leave()
    assert log[1:] == [("info", f"{3 * MAX_REFUSED + 1} client connections over the limit were refused")]
    for _ in range(CAP):
        harness.connect()
    assert [level for level, _ in log] == ["warn", "info", "warn"]


def test_without_a_limit_no_connection_is_refused() -> None:
    harness = SiteHarness(Limits(max_connections=None))
    clients = [harness.connect() for _ in range(200)]
    clients[-1].send(get())
    assert clients[-1].answer().status == 200


def test_a_drain_does_not_wait_for_refused_connections(harness: SiteHarness) -> None:
    refused = []
    served = fill(harness)
    refused.append(harness.connect())
    for client in served:
        client.leave()
    drained = harness.site.drain()
    assert refused[0].transport.aborted
    assert drained.called


def test_closing_transports_of_the_refused_leave_nothing_behind(harness: SiteHarness) -> None:
    served = fill(harness)
    for transport in (TcpTransport(), TlsTransport()):
        late = harness.connect(transport)
        late.send(get())
        late.leave()
    for client in served:
        client.leave()
    harness.assert_clean()


def reconfigure(harness: SiteHarness, **limits: Any) -> None:
    harness.site.reconfigure(Limits(**limits), harness.site.timeouts, MAX_REFUSED)


def test_another_limit_holds_for_new_connections_and_open_ones_stay(harness: SiteHarness) -> None:
    first, *others = fill(harness)
    reconfigure(harness, max_connections=CAP + 1)
    within = harness.connect()
    within.send(get())
    assert within.answer().status == 200
    reconfigure(harness, max_connections=1)
    late = harness.connect()
    late.send(get())
    assert late.answer().status == 503
    first.send(get())
    assert first.answer().status == 200
    assert not any(each.ended for each in others)


def test_a_request_keeps_the_limits_that_it_began_with(harness: SiteHarness) -> None:
    slow, next_one = harness.connect(), harness.connect()
    slow.send(b"GET /stream HTTP/1.1\r\nHost: gateway\r\n")
    reconfigure(harness, max_header_count=3)
    more = b"".join(b"X-%d: x\r\n" % number for number in range(10))
    slow.send(more + b"\r\n")
    assert slow.answer().status == 200
    next_one.send(b"GET /stream HTTP/1.1\r\nHost: gateway\r\n" + more + b"\r\n")
    assert next_one.answer().error()["code"] == "head_too_large"
