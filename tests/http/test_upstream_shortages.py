"""Requests wait for a descriptor or a port to connect with; idle connections make room; then they get a 503."""

from __future__ import annotations

import errno
import os

import pytest
from twisted.internet.error import ConnectBindError, ConnectError, ConnectionRefusedError, DNSLookupError
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from tests.descriptors import no_descriptor
from tests.http.upstream_harness import OK, Asked, Lab, Upload, make_server
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.errors import OutOfSockets, UpstreamUnreachable
from twisted_vllm.http.client.connect_queue import shortage_in
from twisted_vllm.http.net.open_files import SHORTAGES

CONNECT = 5.0
FIRST = make_server(Timeouts(connect=CONNECT))
SECOND = make_server(Timeouts(connect=CONNECT), host="192.0.2.8")

EMFILE = ConnectBindError(errno.EMFILE, "Too many open files")


def refused_for_want_of_sockets(asked: Asked) -> bool:
    return isinstance(asked.error, OutOfSockets) and (asked.error.status, asked.error.retry_after) == (503, 1)


def test_an_idle_connection_of_another_server_makes_room() -> None:
    lab = Lab(max_connections=1)
    first = lab.ask(server=FIRST)
    idle = lab.accept()
    idle.send(OK)
    assert first.body == b"ok"
    second = lab.ask(server=SECOND)
    assert idle.is_cut
    lab.turn()
    lab.accept().send(OK)
    assert second.body == b"ok"
    assert lab.attempts == 2


def test_a_request_over_the_limit_waits_for_a_connection_to_end() -> None:
    lab = Lab(max_connections=2)
    slow = lab.ask(server=FIRST)
    lab.accept()
    quick = lab.ask(server=FIRST)
    end = lab.accept()
    waiting = lab.ask(server=FIRST)
    lab.advance(CONNECT / 2)
    assert waiting.is_pending
    assert lab.attempts == 2
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    lab.turn()
    assert lab.attempts == 3
    lab.accept().send(OK)
    assert waiting.body == b"ok"
    assert (slow.is_pending, quick.body) == (True, b"ok")


def test_a_request_that_waits_too_long_is_told_to_come_back() -> None:
    lab = Lab(max_connections=1)
    _, end = lab.asked()
    waiting = lab.ask(server=FIRST)
    lab.advance(CONNECT - 0.5)
    assert waiting.is_pending
    lab.advance(1.0)
    assert refused_for_want_of_sockets(waiting)
    assert end.is_open
    assert lab.attempts == 1


def test_they_are_connected_in_the_order_in_which_they_came() -> None:
    lab = Lab(max_connections=1)
    _, end = lab.asked()
    waiting = [lab.ask(target=b"/%d" % number, server=FIRST) for number in range(3)]
    for number in range(3):
        end.close()
        end = lab.accept()
        assert end.received.startswith(b"GET /%d " % number)
    assert [asked.is_pending for asked in waiting] == [False, False, True]


@pytest.mark.parametrize("number", sorted(SHORTAGES), ids=errno.errorcode.get)
def test_a_shortage_that_passes_costs_a_request_nothing_but_time(number: int) -> None:
    lab = Lab()
    asked = lab.ask(server=FIRST)
    lab.refuse(ConnectError(number, os.strerror(number)))
    assert asked.is_pending
    lab.advance(0.5)
    assert lab.attempts == 2
    lab.accept().send(OK)
    assert asked.body == b"ok"
    assert lab.shortages.counts == {("connect", errno.errorcode[number]): 1}


def test_a_shortage_that_stays_is_a_503_and_no_502() -> None:
    lab = Lab()
    asked = lab.ask(server=FIRST)
    for _ in range(100):
        if asked.is_pending:
            lab.refuse(EMFILE)
            lab.advance(0.25)
    assert refused_for_want_of_sockets(asked)
    # it tries at each check of the deadlines, and does not keep the reactor busy
    assert lab.attempts <= CONNECT / 0.25 + 2
    lab.assert_nothing_left()


def test_a_shortage_closes_the_connections_that_have_been_idle_for_longest() -> None:
    lab = Lab()
    ends = []
    for _ in range(20):
        lab.ask(server=FIRST)
        ends.append(lab.accept())
    for end in ends:
        lab.advance(0.01)
        end.send(OK)
    asked = lab.ask(server=SECOND)
    lab.refuse(EMFILE)
    assert [end.is_cut for end in ends] == [True] * 16 + [False] * 4
    lab.turn()
    lab.accept().send(OK)
    assert asked.body == b"ok"


def test_the_line_of_a_shortage_stands_once_a_second() -> None:
    events: list[LogEvent] = []
    observer = implementer(ILogObserver)(lambda event: events.append(event))
    globalLogPublisher.addObserver(observer)
    lab = Lab()
    lab.ask(server=FIRST)
    lab.refuse(EMFILE)
    globalLogPublisher.removeObserver(observer)
    [event] = events
    assert formatEvent(event).startswith("Out of sockets or files: no connection to a server could be made (Too many")
    assert event["once_a_second"] == "connect"


def test_other_faults_of_a_connection_are_a_502_at_once() -> None:
    lab = Lab()
    asked = lab.ask(server=FIRST)
    lab.refuse(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    assert isinstance(asked.error, UpstreamUnreachable)
    assert not lab.shortages.counts


def test_a_body_is_not_read_while_its_request_waits() -> None:
    lab = Lab(max_connections=1)
    _, end = lab.asked()
    upload = Upload()
    waiting = lab.ask(b"POST", body=upload, server=FIRST)
    assert upload.started == 0
    end.close()
    lab.accept()
    assert upload.started == 1
    assert waiting.is_pending


def test_giving_up_while_waiting_leaves_nothing() -> None:
    lab = Lab(max_connections=1)
    _, end = lab.asked()
    waiting = lab.ask(server=FIRST)
    waiting.result.cancel()
    end.close()
    lab.assert_nothing_left()
    assert lab.attempts == 1


def test_closing_the_agent_fails_those_that_wait() -> None:
    lab = Lab(max_connections=1)
    lab.asked()
    waiting = lab.ask(server=FIRST)
    lab.agent.close()
    assert isinstance(waiting.error, UpstreamUnreachable)
    lab.assert_nothing_left()


def test_a_name_that_cannot_be_resolved_for_want_of_a_descriptor_is_a_shortage_too() -> None:
    assert shortage_in(DNSLookupError("no results")) is None
    with no_descriptor():
        assert shortage_in(DNSLookupError("no results")) == errno.EMFILE
