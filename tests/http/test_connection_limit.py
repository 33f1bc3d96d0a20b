"""Clients over the cap: refused in so many words, and no burden."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from tests.http.server_harness import House, TcpTransport, TlsTransport, get, read_answers
from twisted_vllm.config.settings import Limits
from twisted_vllm.http.server.connection_limit import MAX_REFUSED, PATIENCE

CAP = 10


@pytest.fixture
def house() -> House:
    return House(Limits(max_connections=CAP))


@pytest.fixture
def log() -> Iterator[list[tuple[str, str]]]:
    lines: list[tuple[str, str]] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append((event["log_level"].name, formatEvent(event)))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def fill(house: House) -> list[Any]:
    return [house.connect() for _ in range(CAP)]


def test_a_connection_over_the_cap_is_told_at_its_first_bytes(house: House) -> None:
    fill(house)
    late = house.connect()
    assert late.transport.value() == b""
    late.send(get()[:3])
    answer = late.answer()
    assert (answer.status, answer.error()["code"]) == (503, "too_many_connections")
    assert (answer.header(b"retry-after"), answer.closes, late.ended) == (b"1", True, True)
    assert answer.header(b"x-request-id")
    assert house.streaming.rendered == []


def test_it_is_answered_once_whatever_else_it_sends(house: House) -> None:
    fill(house)
    late = house.connect()
    late.send(*[get()] * 50, b"x" * 1_000_000)
    assert len(late.answers()) == 1
    assert not late.transport.aborted, "the answer could be lost"


def test_over_tls_it_is_told_as_well(house: House) -> None:
    fill(house)
    late = house.connect(TlsTransport())
    late.send(get())
    assert read_answers(late.transport.value())[0].status == 503
    assert late.gone


def test_it_is_cut_when_it_neither_asks_nor_leaves(house: House) -> None:
    fill(house)
    silent, lingering = house.connect(), house.connect()
    lingering.send(get())
    house.pass_time(PATIENCE + 1)
    assert (silent.transport.aborted, lingering.transport.aborted) == (True, True)


def test_those_within_the_cap_are_served_meanwhile_and_room_is_used_again(house: House) -> None:
    first, *others = fill(house)
    house.connect().send(get())
    first.send(get())
    assert first.answer().status == 200
    first.leave()
    late = house.connect()
    late.send(get())
    assert late.answer().status == 200
    for client in (*others, late):
        client.leave()
    house.pass_time(PATIENCE + 1)


def test_a_flood_is_closed_without_a_word(house: House) -> None:
    fill(house)
    waiting = [house.connect() for _ in range(MAX_REFUSED)]
    late = house.connect()
    assert late.transport.aborted
    assert not any(client.transport.aborted for client in waiting)
    for client in waiting:
        client.leave()
    late = house.connect()
    late.send(get())
    assert late.answer().status == 503


def test_a_burst_is_one_warning_however_many_it_refuses(house: House, log: list[tuple[str, str]]) -> None:
    served = fill(house)
    for _ in range(3 * MAX_REFUSED):
        house.connect()
    served.pop().leave()
    house.connect()
    house.connect()
    assert log == [("warn", f"Over {CAP} client connections: more are refused until some have ended")]
    for client in served[:5]:
        client.leave()
    assert log[1:] == [("info", f"{3 * MAX_REFUSED + 1} client connections over the cap were refused")]
    for _ in range(CAP):
        house.connect()
    assert [level for level, _ in log] == ["warn", "info", "warn"]


def test_without_a_cap_nobody_is_refused() -> None:
    house = House(Limits(max_connections=None))
    clients = [house.connect() for _ in range(200)]
    clients[-1].send(get())
    assert clients[-1].answer().status == 200


def test_a_drain_does_not_wait_for_who_is_refused(house: House) -> None:
    refused = []
    served = fill(house)
    refused.append(house.connect())
    for client in served:
        client.leave()
    drained = house.site.drain()
    assert refused[0].transport.aborted
    assert drained.called


def test_closing_transports_of_the_refused_leave_nothing_behind(house: House) -> None:
    served = fill(house)
    for transport in (TcpTransport(), TlsTransport()):
        late = house.connect(transport)
        late.send(get())
        late.leave()
    for client in served:
        client.leave()
    house.assert_clean()
