"""The request as the server receives it: the head unchanged, the body at once or streamed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.upstream_harness import OK, Lab, Upload, make_server, second_attempt
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.errors import GatewayError, UpstreamTimeout

LENGTH_5 = [(b"Host", b"vllm"), (b"Content-Length", b"5")]
CHUNKED = [(b"Host", b"vllm"), (b"Transfer-Encoding", b"chunked")]


def test_the_request_is_written_with_exactly_the_headers_that_were_given() -> None:
    lab = Lab()
    headers = [
        (b"hOsT", b"vllm:8000"),
        (b"X-Two", b"2"),
        (b"x-one", b""),
        (b"X-Two", b"1"),
        (b"Content-LENGTH", b"0"),
        (b"X-Latin", b"caf\xe9"),
    ]
    lab.ask(b"POST", b"/v1/a%2Fb//c?q=1&q=2+3", headers)
    assert lab.accept().received == (
        b"POST /v1/a%2Fb//c?q=1&q=2+3 HTTP/1.1\r\n"
        b"hOsT: vllm:8000\r\nX-Two: 2\r\nx-one: \r\nX-Two: 1\r\nContent-LENGTH: 0\r\nX-Latin: caf\xe9\r\n\r\n"
    )


def test_nothing_is_added_to_a_request_without_headers() -> None:
    lab = Lab()
    lab.ask(b"OPTIONS", b"*", [])
    assert lab.accept().received == b"OPTIONS * HTTP/1.1\r\n\r\n"


def test_a_body_in_hand_goes_out_in_the_same_write_as_the_head() -> None:
    lab = Lab()
    lab.ask(b"POST", b"/", LENGTH_5, b"hello")
    end = lab.accept()
    assert end.writes == [b"POST / HTTP/1.1\r\nHost: vllm\r\nContent-Length: 5\r\n\r\nhello"]


def test_an_empty_body_in_hand_is_no_body() -> None:
    lab = Lab()
    asked = lab.ask(b"POST", b"/", [(b"Content-Length", b"0")], b"")
    end = lab.accept()
    assert end.writes == [b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"]
    end.send(OK)
    assert asked.body == b"ok"


def test_a_reused_connection_gets_the_same_bytes_as_a_fresh_one() -> None:
    lab = Lab()
    _, end = lab.reused(body=b"hello")
    assert end.writes == [b"POST /v1/models HTTP/1.1\r\nHost: vllm\r\n\r\nhello"]


def test_a_streamed_body_of_known_length_goes_out_as_it_comes() -> None:
    lab = Lab()
    upload = Upload(5)
    asked = lab.ask(b"POST", b"/", LENGTH_5, upload)
    assert upload.started == 0, "not before there is a connection"
    end = lab.accept()
    assert upload.started == 1
    assert end.received.endswith(b"\r\n\r\n")
    end.clear_writes()
    upload.write(b"he")
    upload.write(b"")
    upload.write(b"llo")
    upload.finish()
    assert end.writes == [b"he", b"llo"]
    assert end.transport.producer is None
    end.send(OK)
    assert asked.body == b"ok"
    assert not upload.stopped


def test_a_streamed_body_of_unknown_length_goes_out_in_chunks() -> None:
    lab = Lab()
    upload = Upload()
    asked = lab.ask(b"POST", b"/", CHUNKED, upload)
    end = lab.accept()
    end.clear_writes()
    upload.write(b"0123456789abcdef")
    upload.write(b"")
    upload.write(b"x")
    assert end.received == b"10\r\n0123456789abcdef\r\n1\r\nx\r\n"
    upload.finish()
    assert end.received.endswith(b"\r\n1\r\nx\r\n0\r\n\r\n")
    end.send(OK)
    assert asked.body == b"ok"


def test_an_empty_streamed_body_is_ended_too() -> None:
    lab = Lab()
    upload = Upload()
    lab.ask(b"POST", b"/", CHUNKED, upload)
    end = lab.accept()
    end.clear_writes()
    upload.finish()
    assert end.received == b"0\r\n\r\n"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=8))
def test_no_piece_is_taken_for_the_end_of_a_chunked_body(pieces: list[bytes]) -> None:
    lab = Lab()
    upload = Upload()
    lab.ask(b"POST", b"/", CHUNKED, upload)
    end = lab.accept()
    end.clear_writes()
    for piece in pieces:
        upload.write(piece)
    upload.finish()
    rest, body = end.received, b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        body += rest[:length]
        assert rest[length : length + 2] == b"\r\n"
        rest = rest[length + 2 :]
    assert rest == b"\r\n"
    assert body == b"".join(pieces)


def test_the_upload_is_paused_while_the_servers_connection_is_full() -> None:
    lab = Lab()
    upload = Upload()
    lab.ask(b"POST", b"/", CHUNKED, upload)
    end = lab.accept()
    assert end.transport.streaming is True, "the body pushes"
    end.transport.drain()
    end.transport.full_at = 100
    paused = []
    for piece in (b"a" * 50, b"b" * 60):
        upload.write(piece)
        paused.append(upload.paused)
    end.transport.drain()
    assert [*paused, upload.paused] == [False, True, False]


def test_a_server_is_not_late_while_the_body_is_still_coming() -> None:
    lab = Lab()
    upload = Upload()
    asked = lab.ask(b"POST", b"/", CHUNKED, upload, make_server(Timeouts(response_head=10)))
    end = lab.accept()
    for _ in range(4):
        lab.advance(8)
        upload.write(b"more")
    upload.finish()
    lab.advance(8)
    assert asked.is_pending
    end.send(OK)
    assert asked.body == b"ok"


def test_a_server_that_does_not_answer_once_the_body_was_sent_is_late() -> None:
    lab = Lab()
    upload = Upload()
    asked = lab.ask(b"POST", b"/", CHUNKED, upload, make_server(Timeouts(response_head=10)))
    end = lab.accept()
    upload.write(b"all")
    upload.finish()
    lab.advance(11)
    assert isinstance(asked.error, UpstreamTimeout)
    assert end.is_cut


# the server answers before it has the body


@pytest.mark.parametrize("length", [5, None])
def test_an_answer_to_half_a_body_is_delivered_and_stops_the_upload(length: int | None) -> None:
    lab = Lab()
    upload = Upload() if length is None else Upload(length)
    asked = lab.ask(b"POST", b"/", CHUNKED if length is None else LENGTH_5, upload)
    end = lab.accept()
    upload.write(b"he")
    end.clear_writes()
    end.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 8\r\n\r\ntoo long")
    assert asked.response.code == 413
    assert asked.body == b"too long"
    assert upload.stopped
    assert end.is_cut, "what is missing of the body would be read as the next request"
    upload.write(b"late")
    upload.finish()
    assert end.received == b""
    lab.assert_nothing_left()


def test_the_upload_goes_on_until_the_answer_is_whole() -> None:
    lab = Lab()
    upload = Upload(5)
    asked = lab.ask(b"POST", b"/", LENGTH_5, upload)
    end = lab.accept()
    end.clear_writes()
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
    upload.write(b"hello")
    upload.finish()
    assert end.received == b"hello"
    end.send(b"k")
    assert asked.body == b"ok"
    assert end.is_open
    assert not upload.stopped


def test_an_answer_that_ends_with_the_connection_stops_the_upload() -> None:
    lab = Lab()
    upload = Upload(5)
    asked = lab.ask(b"POST", b"/", LENGTH_5, upload)
    end = lab.accept()
    end.send(b"HTTP/1.1 413 Too Large\r\n\r\ntoo long")
    end.close()
    assert asked.body == b"too long"
    assert upload.stopped
    upload.write(b"late")
    upload.finish()
    lab.assert_nothing_left()


def test_the_upload_stops_when_the_connection_is_lost() -> None:
    lab = Lab()
    upload = Upload()
    asked = lab.ask(b"POST", b"/", CHUNKED, upload)
    end = lab.accept()
    upload.write(b"some")
    end.reset()
    assert upload.stopped
    assert isinstance(asked.error, GatewayError)
    upload.write(b"late")
    upload.finish()
    lab.assert_nothing_left()


def test_a_body_that_cannot_be_read_fails_the_request() -> None:
    lab = Lab()
    upload = Upload()
    asked = lab.ask(b"POST", b"/", CHUNKED, upload)
    end = lab.accept()
    upload.write(b"half")
    upload.fail(OSError("the disk is gone"))
    assert not asked.is_pending
    assert end.is_cut
    assert not end.received.endswith(b"0\r\n\r\n"), "half a body must not look whole"
    lab.assert_nothing_left()


def test_the_time_of_sending_is_when_the_request_was_written_to_a_connection() -> None:
    lab, times = Lab(), list[float]()
    lab.agent.request(b"POST", b"http://192.0.2.7:8000/", server=make_server(), on_sent=times.append)
    lab.clock.advance(3)
    # it still connects
    assert times == []
    lab.accept()
    assert times == [lab.clock.seconds()]
    lab.clock.advance(3)
    assert len(times) == 1


def test_the_time_of_sending_an_upload_is_that_of_its_last_piece() -> None:
    lab, times, body = Lab(), list[float](), Upload(10)
    lab.agent.request(b"POST", b"http://192.0.2.7:8000/", None, body, server=make_server(), on_sent=times.append)
    lab.accept()
    for _ in range(2):
        lab.clock.advance(3)
        body.write(b"hello")
    assert times[-1] == lab.clock.seconds()
    assert times[0] < times[-2] < times[-1]


def test_a_request_that_is_sent_again_keeps_the_time_of_its_first_sending() -> None:
    lab, times = Lab(), list[float]()
    lab.agent.request(b"GET", b"http://192.0.2.7:8000/", server=make_server(), on_sent=times.append)
    first = lab.accept()
    first.send(OK)
    lab.agent.request(
        b"GET", b"http://192.0.2.7:8000/", server=make_server(), on_sent=times.append, again=second_attempt
    )
    lab.clock.advance(1)
    first.close()
    again = lab.accept()
    assert again.received.startswith(b"GET / ")
    assert len(times) == 2
