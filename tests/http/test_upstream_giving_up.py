"""Cancelled requests: vLLM stops generating when its connection closes, so it is closed at once."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from tests.http.upstream_harness import OK, Lab, Upload, second_attempt

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


def test_cancelling_before_there_is_a_connection_ceases_to_connect() -> None:
    lab = Lab()
    asked = lab.ask()
    asked.result.cancel()
    assert isinstance(asked.error, CancelledError)
    assert lab.clock.connectors[0].stoppedConnecting
    lab.assert_nothing_left()


def test_a_body_is_not_begun_for_a_request_that_was_cancelled_while_connecting() -> None:
    lab = Lab()
    upload = Upload()
    lab.ask(b"POST", body=upload).result.cancel()
    assert upload.started == 0


@pytest.mark.parametrize("body", [None, b"held"])
def test_cancelling_while_waiting_for_the_head_cuts_the_connection(body: bytes | None) -> None:
    lab = Lab()
    asked, end = lab.asked(b"POST", body)
    asked.result.cancel()
    assert isinstance(asked.error, CancelledError)
    assert end.is_cut
    lab.assert_nothing_left()
    assert lab.attempts == 1


def test_cancelling_on_a_reused_connection_sends_nothing_again() -> None:
    lab = Lab()
    asked, end = lab.reused(body=b"held", again=second_attempt)
    asked.result.cancel()
    assert isinstance(asked.error, CancelledError)
    assert end.is_cut
    lab.assert_nothing_left()
    assert lab.attempts == 1


def test_cancelling_after_an_interim_response_cuts_the_connection() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
    asked.result.cancel()
    assert isinstance(asked.error, CancelledError)
    assert end.is_cut
    lab.assert_nothing_left()


def test_cancelling_stops_the_upload() -> None:
    lab = Lab()
    upload = Upload()
    asked, end = lab.asked(b"POST", upload)
    upload.write(b"some")
    end.clear_writes()
    asked.result.cancel()
    assert upload.stopped
    assert end.is_cut
    upload.write(b"late")
    upload.finish()
    assert end.received == b""
    lab.assert_nothing_left()


def test_cancelling_while_the_request_is_sent_again_ceases_to_connect() -> None:
    lab = Lab()
    asked, stale = lab.reused(body=b"held", again=second_attempt)
    stale.close()
    asked.result.cancel()
    assert isinstance(asked.error, CancelledError)
    assert lab.clock.connectors[1].stoppedConnecting
    lab.assert_nothing_left()


def test_cancelling_a_request_that_was_sent_again_cuts_the_fresh_connection() -> None:
    lab = Lab()
    asked, stale = lab.reused(body=b"held", again=second_attempt)
    stale.close()
    fresh = lab.accept()
    asked.result.cancel()
    assert isinstance(asked.error, CancelledError)
    assert fresh.is_cut
    lab.assert_nothing_left()


WAYS = {
    "the response is cut": lambda asked: asked.response.cut(),
    "the transport is stopped": lambda asked: asked.reader.transport.stopProducing(),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_giving_up_a_body_cuts_the_connection_at_once(way: Any) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(CHUNKED)
    way(asked)
    assert end.is_cut
    lab.assert_nothing_left()
    assert not asked.response.complete
    assert asked.reader is not None
    assert not asked.reader.is_whole


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_giving_up_a_body_from_within_a_piece_delivers_no_more_of_it(way: Any) -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    reader = asked.read(lambda _: way(asked))
    end.send(b"5\r\nhello\r\n")
    end.send(b"5\r\nagain\r\n")
    assert reader.pieces == [b"hello"]
    assert end.is_cut
    lab.assert_nothing_left()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_giving_up_a_body_stops_the_upload(way: Any) -> None:
    lab = Lab()
    upload = Upload()
    asked, end = lab.asked(b"POST", upload)
    end.send(CHUNKED)
    way(asked)
    assert upload.stopped
    lab.assert_nothing_left()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_the_reader_of_a_body_that_is_given_up_is_notified(way: Any) -> None:
    """IResponse.deliverBody promises connectionLost; treq's content() would wait for ever."""
    lab = Lab()
    asked, end = lab.asked()
    end.send(CHUNKED)
    way(asked)
    lab.turn()
    assert asked.end is not None


def test_giving_up_a_response_before_its_body_is_asked_for_cuts_the_connection() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(CHUNKED)
    asked.response.cut()
    assert end.is_cut
    lab.assert_nothing_left()


def test_giving_up_from_within_the_callback_cuts_the_connection() -> None:
    lab = Lab()
    result = lab.ask(read=False).result
    result.addCallback(lambda _: lab.agent.close())
    end = lab.accept()
    end.send(CHUNKED)
    assert end.is_cut
    lab.assert_nothing_left()


def test_giving_up_twice_is_giving_up_once() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(CHUNKED)
    asked.response.cut()
    asked.response.cut()
    asked.result.cancel()
    lab.turn()
    asked.response.cut()
    lab.assert_nothing_left()
    assert end.is_cut


def test_giving_up_a_whole_response_leaves_its_connection_to_others() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(OK)
    asked.response.cut()
    asked.result.cancel()
    assert end.is_open
    assert len(lab.agent.pool) == 1
