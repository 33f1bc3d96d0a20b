"""Servers that are unreachable, disconnect or time out."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    DNSLookupError,
    NoRouteError,
    TCPTimedOutError,
    TimeoutError,
)
from twisted.internet.interfaces import IHostnameResolver
from zope.interface import implementer

from tests.http.upstream_harness import HOST, OK, PORT, Lab, Upload, make_server, second_attempt
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.errors import UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.http.client.retries import BURST, SHARE, StaleRequest
from twisted_vllm.http.net.deadlines import INTERVAL

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

# connecting


@pytest.mark.parametrize("reason", [ConnectionRefusedError(), NoRouteError(), DNSLookupError(HOST), ConnectError(HOST)])
def test_the_error_of_an_unreachable_server_omits_its_address(reason: Exception) -> None:
    lab = Lab()
    asked = lab.ask(server=make_server(host=HOST, port=PORT))
    lab.refuse(reason)
    assert isinstance(asked.error, UpstreamUnreachable)
    assert HOST not in asked.error.message
    assert str(PORT) not in asked.error.message
    lab.assert_nothing_left()


def test_a_request_that_could_not_connect_is_not_tried_again() -> None:
    lab = Lab()
    lab.ask()
    lab.refuse(ConnectionRefusedError())
    assert lab.attempts == 1


def test_connecting_is_given_the_servers_own_time() -> None:
    lab = Lab()
    lab.ask(server=make_server(Timeouts(connect=2.5)))
    host, port, _, timeout, _ = lab.clock.tcpClients[0]
    assert (host, port, timeout) == (HOST, PORT, 2.5)


@pytest.mark.parametrize("reason", [TimeoutError(), TCPTimedOutError()])
def test_connecting_that_takes_too_long_is_a_timeout(reason: Exception) -> None:
    lab = Lab()
    asked = lab.ask()
    lab.refuse(reason)
    assert isinstance(asked.error, UpstreamTimeout)
    assert HOST not in asked.error.message
    lab.assert_nothing_left()


def test_the_next_request_tries_to_connect_anew() -> None:
    lab = Lab()
    lab.ask()
    lab.refuse(ConnectionRefusedError())
    asked, end = lab.asked()
    end.send(OK)
    assert asked.body == b"ok"


# going away


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("body", [None, b"held"])
def test_a_server_that_closes_a_fresh_connection_without_a_byte_is_unreachable(leave: str, body: bytes | None) -> None:
    lab = Lab()
    asked, end = lab.asked(b"POST", body)
    getattr(end, leave)()
    assert isinstance(asked.error, UpstreamUnreachable)
    assert lab.attempts == 1, "a fresh connection says nothing about a stale one"
    lab.assert_nothing_left()


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("body", [None, b"", b"held", b"\r\n\r\n"])
def test_a_repeatable_request_on_a_connection_that_turns_out_dead_is_sent_again_with_an_id_of_its_own(
    leave: str, body: bytes | None
) -> None:
    lab = Lab()
    asked, stale = lab.reused(body=body, again=second_attempt)
    getattr(stale, leave)()
    assert lab.attempts == 2
    assert asked.is_pending
    fresh = lab.accept()
    assert stale.received == b"POST /v1/models HTTP/1.1\r\nHost: vllm\r\n\r\n" + (body or b"")
    head = b"POST /v1/models HTTP/1.1\r\nHost: vllm\r\nX-Request-Id: second\r\n\r\n"
    assert fresh.writes == [head + (body or b"")]
    fresh.send(OK)
    assert asked.body == b"ok"
    assert len(lab.agent.pool) == 1
    assert lab.agent.stale_requests == {StaleRequest.REPEATED: 1}


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("body", [None, b"held"])
def test_a_request_that_may_do_harm_twice_is_sent_once(leave: str, body: bytes | None) -> None:
    lab = Lab()
    asked, stale = lab.reused(body=body)
    getattr(stale, leave)()
    assert isinstance(asked.error, UpstreamUnreachable)
    assert lab.attempts == 1
    assert lab.agent.stale_requests == {StaleRequest.NOT_REPEATABLE: 1}
    lab.assert_nothing_left()


def test_a_server_that_fails_gets_at_most_a_tenth_more_requests_and_ten() -> None:
    lab = Lab()
    attempts = []
    for _ in range(100):
        asked, end = lab.asked() if not len(lab.agent.pool) else (lab.ask(), lab.ends[-1])
        end.send(OK)
        before = lab.attempts
        repeated = lab.ask(b"POST", body=b"held", again=second_attempt)
        end.close()
        attempts.append(lab.attempts - before)
        if attempts[-1]:
            lab.accept().send(OK)
            assert repeated.body == b"ok"
        else:
            assert isinstance(repeated.error, UpstreamUnreachable)
        assert asked.body == b"ok"
    sent = 200
    assert attempts[:BURST] == [1] * BURST
    assert sum(attempts) <= BURST + SHARE * (sent + sum(attempts))
    assert lab.agent.stale_requests[StaleRequest.OVER_BUDGET] == 100 - sum(attempts) > 50


def test_a_request_is_sent_again_only_once() -> None:
    lab = Lab()
    asked, stale = lab.reused(body=b"held", again=second_attempt)
    stale.close()
    lab.accept().close()
    assert isinstance(asked.error, UpstreamUnreachable)
    assert lab.attempts == 2
    lab.assert_nothing_left()


def test_a_request_is_sent_again_on_no_other_idle_connection() -> None:
    """Where one idle connection is dead, the others are likely to be dead too."""
    lab = Lab()
    one, first = lab.asked()
    two, second = lab.asked()
    first.send(OK)
    second.send(OK)
    assert one.body == two.body == b"ok"
    first.clear_writes()
    asked = lab.ask(b"POST", body=b"held", again=second_attempt)
    second.close()
    assert first.received == b""
    assert lab.attempts == 3
    lab.accept().send(OK)
    assert asked.body == b"ok"


def test_a_request_that_is_sent_again_can_fail_to_connect() -> None:
    lab = Lab()
    asked, stale = lab.reused(body=b"held", again=second_attempt)
    stale.close()
    lab.refuse(ConnectionRefusedError())
    assert isinstance(asked.error, UpstreamUnreachable)
    lab.assert_nothing_left()


def test_a_request_that_is_sent_again_has_all_its_time_again() -> None:
    lab = Lab()
    asked, stale = lab.reused(body=b"held", again=second_attempt)
    lab.advance(500)
    stale.close()
    fresh = lab.accept()
    lab.advance(599)
    assert asked.is_pending
    fresh.send(OK)
    assert asked.body == b"ok"


@pytest.mark.parametrize("written", [b"", b"some"])
def test_a_streamed_body_is_not_sent_again(written: bytes) -> None:
    lab = Lab()
    upload = Upload()
    asked, stale = lab.reused(body=upload, again=second_attempt)
    upload.write(written)
    stale.close()
    assert isinstance(asked.error, UpstreamUnreachable)
    assert lab.attempts == 1
    assert upload.started == 1
    assert upload.stopped
    lab.assert_nothing_left()


@pytest.mark.parametrize("came", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_request_that_the_server_began_to_answer_is_not_sent_again(came: bytes) -> None:
    lab = Lab()
    asked, stale = lab.reused(body=b"held", again=second_attempt)
    stale.send(came)
    stale.close()
    assert isinstance(asked.error, UpstreamProtocolError)
    assert lab.attempts == 1
    lab.assert_nothing_left()


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize(
    ("raw", "pieces"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", []),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", [b"hell"]),
        (CHUNKED, []),
        (CHUNKED + b"5\r\nhel", [b"hel"]),
        (CHUNKED + b"5\r\nhello\r\n", [b"hello"]),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", [b"hello"]),
    ],
)
def test_a_body_that_is_cut_short_fails_after_the_pieces_that_came(raw: bytes, pieces: list[bytes], leave: str) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(raw)
    getattr(end, leave)()
    assert asked.reader is not None
    assert asked.reader.pieces == pieces
    assert not asked.response.complete
    assert isinstance(asked.cause, UpstreamProtocolError)
    lab.assert_nothing_left()


# taking too long


@implementer(IHostnameResolver)
class SilentResolver:
    """Never finds out what a name stands for."""

    def resolveHostName(self, resolutionReceiver: Any, hostName: str, *args: Any, **kwargs: Any) -> Any:
        resolutionReceiver.resolutionBegan(self)
        return self

    def cancel(self) -> None:
        """Stop."""


def test_a_name_that_is_not_resolved_in_time_is_given_up() -> None:
    lab = Lab()
    lab.clock.installNameResolver(SilentResolver())
    asked = lab.ask(server=make_server(Timeouts(connect=5), host="gpu.example"))
    lab.advance(4.5)
    assert asked.is_pending
    lab.advance(1)
    assert isinstance(asked.error, UpstreamTimeout)
    lab.agent.close()
    lab.assert_nothing_left()


def test_a_server_that_does_not_answer_in_time_is_given_up() -> None:
    lab = Lab()
    asked = lab.ask(server=make_server(Timeouts(response_head=10)))
    end = lab.accept()
    lab.advance(10)
    assert asked.is_pending, "a deadline is never early"
    lab.advance(2 * INTERVAL)
    assert isinstance(asked.error, UpstreamTimeout)
    assert end.is_cut
    lab.assert_nothing_left()


@pytest.mark.parametrize("came", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_less_than_a_head_does_not_buy_time(came: bytes) -> None:
    lab = Lab()
    asked = lab.ask(server=make_server(Timeouts(response_head=10)))
    end = lab.accept()
    lab.advance(9)
    end.send(came)
    lab.advance(2)
    assert isinstance(asked.error, UpstreamTimeout)


def test_a_timeout_is_not_followed_by_another_try() -> None:
    lab = Lab()
    asked, _ = lab.reused(body=b"held", again=second_attempt)
    lab.advance(601)
    assert isinstance(asked.error, UpstreamTimeout)
    assert lab.attempts == 1
    lab.assert_nothing_left()


def test_each_piece_of_a_response_has_its_own_time() -> None:
    lab = Lab()
    asked = lab.ask(server=make_server(Timeouts(idle=10)))
    end = lab.accept()
    end.send(CHUNKED)
    for _ in range(3):
        lab.advance(9)
        end.send(b"1\r\nx\r\n")
    assert asked.end is None
    lab.advance(11)
    assert asked.reader is not None
    assert asked.reader.body == b"xxx"
    assert isinstance(asked.cause, UpstreamTimeout)
    assert end.is_cut
    lab.assert_nothing_left()


def test_a_whole_exchange_may_have_a_limit_however_busy_it_is() -> None:
    lab = Lab()
    asked = lab.ask(server=make_server(Timeouts(total=20, idle=10)))
    end = lab.accept()
    end.send(CHUNKED)
    for _ in range(4):
        lab.advance(5.0 - INTERVAL)
        end.send(b"1\r\nx\r\n")
    assert asked.end is None
    lab.advance(2)
    assert isinstance(asked.cause, UpstreamTimeout)


def test_the_limit_of_the_whole_exchange_holds_for_the_head_too() -> None:
    lab = Lab()
    asked = lab.ask(server=make_server(Timeouts(total=5, response_head=600)))
    lab.accept()
    lab.advance(6)
    assert isinstance(asked.error, UpstreamTimeout)


def test_without_limits_a_server_may_take_for_ever() -> None:
    lab = Lab()
    asked = lab.ask(server=make_server(Timeouts(response_head=None, idle=None, total=None)))
    end = lab.accept()
    lab.advance(5000)
    end.send(CHUNKED)
    lab.advance(5000)
    end.send(b"0\r\n\r\n")
    assert asked.body == b""


def test_a_server_is_not_late_while_its_reader_pauses() -> None:
    lab = Lab()
    asked = lab.ask(server=make_server(Timeouts(idle=10)))
    end = lab.accept()
    end.send(CHUNKED + b"1\r\na\r\n")
    assert asked.reader is not None
    asked.reader.transport.pauseProducing()
    was_paused = end.is_paused
    lab.advance(1000)
    assert asked.end is None
    asked.reader.transport.resumeProducing()
    assert (was_paused, end.is_paused) == (True, False)
    lab.advance(9)
    assert asked.end is None
    lab.advance(2)
    assert isinstance(asked.cause, UpstreamTimeout)


def test_a_reader_that_pauses_does_not_outlast_the_whole_exchange() -> None:
    lab = Lab()
    asked = lab.ask(server=make_server(Timeouts(total=20)))
    end = lab.accept()
    end.send(CHUNKED)
    assert asked.reader is not None
    asked.reader.transport.pauseProducing()
    lab.advance(21)
    assert isinstance(asked.cause, UpstreamTimeout)


def test_the_message_of_a_timeout_names_no_address() -> None:
    lab = Lab()
    asked, _ = lab.asked()
    lab.advance(601)
    assert isinstance(asked.error, UpstreamTimeout)
    assert HOST not in asked.error.message
