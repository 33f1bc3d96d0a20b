"""The framing of servers' responses, whole and in pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.web.iweb import UNKNOWN_LENGTH

from tests.http.upstream_harness import OK, HeaderPairs, Lab, make_server
from twisted_vllm.errors import UpstreamProtocolError, UpstreamUnreachable

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("byte", [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F])
@pytest.mark.parametrize("status", [b"200", b"404", b"103", b"101"])
def test_a_reason_phrase_with_a_control_byte_is_no_answer(status: bytes, byte: int) -> None:
    """RFC 9112 §4 allows tabs, spaces, visible characters and obs-text."""
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 %b No%ct\r\nContent-Length: 0\r\n\r\n" % (status, byte))
    assert isinstance(asked.error, UpstreamProtocolError)
    assert asked.interim == []
    assert end.is_cut


@pytest.mark.parametrize("reason", [b"", b"OK", b"Not\tFound here", b"Erreur d'\xc3\xa9tat", b"\xff"])
def test_any_other_reason_phrase_is_relayed(reason: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 200 %b\r\nContent-Length: 2\r\n\r\nok" % reason)
    assert (asked.response.phrase, asked.body) == (reason, b"ok")


@pytest.mark.parametrize("name", [b"content-length", b"Content-Length", b"close, CONTENT-LENGTH , keep-alive"])
def test_a_nominated_length_still_frames_the_answer(name: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 200 OK\r\nConnection: %b\r\nContent-Length: 2\r\n\r\nok" % name)
    assert asked.body == b"ok"
    assert asked.response.head.relayed == [(b"Content-Length", b"2")]


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        pytest.param(OK, b"ok", id="content-length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", id="content-length 0"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\nok", b"ok", id="no space after the colon"),
        pytest.param(CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"ok", id="chunked"),
        pytest.param(CHUNKED + b"0\r\n\r\n", b"", id="chunked, empty"),
        pytest.param(CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n", b"ok", id="two chunks"),
        pytest.param(CHUNKED + b"0000A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", id="size in hex with zeros"),
        pytest.param(CHUNKED + b'2;name=value;q="a b"\r\nok\r\n0;last\r\n\r\n', b"ok", id="chunk extensions"),
        pytest.param(CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n", b"ok", id="trailers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok", id="case"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", b"", id="204"),
        pytest.param(b"HTTP/1.1 304 Not Modified\r\nETag: a\r\n\r\n", b"", id="304"),
        pytest.param(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", id="304 with a length"),
        pytest.param(b"HTTP/1.1 500 Error\r\nContent-Length: 2\r\n\r\nno", b"no", id="an error is a response"),
        pytest.param(b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", b"", id="a redirect too"),
    ],
)
def test_a_response_ends_where_its_framing_says(raw: bytes, body: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(raw)
    assert asked.body == body
    assert asked.response.complete
    assert asked.response.code == int(raw[9:12])
    assert end.is_open
    assert len(lab.agent.pool) == 1


def test_the_trailers_are_not_taken_for_headers() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n")
    assert asked.response.raw_headers == [(b"Transfer-Encoding", b"chunked")]


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"],
)
def test_a_body_without_a_length_ends_with_the_connection(head: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(head + b"one")
    end.send(b"two")
    assert asked.end is None
    was_complete = asked.response.complete
    end.close()
    assert asked.body == b"onetwo"
    assert (was_complete, asked.response.complete) == (False, True)
    lab.assert_nothing_left()


def test_a_body_without_a_length_is_cut_short_when_the_connection_breaks() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 200 OK\r\n\r\none")
    end.reset()
    assert asked.reader is not None
    assert asked.reader.pieces == [b"one"]
    assert isinstance(asked.cause, UpstreamProtocolError)
    assert not asked.response.complete


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        CHUNKED,
        b"HTTP/1.1 404 Not Found\r\n\r\n",
    ],
)
def test_the_response_to_head_has_no_body_whatever_it_announces(raw: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked(b"HEAD")
    end.send(raw)
    assert asked.body == b""
    assert asked.response.complete
    assert asked.response.length == 0
    again = lab.ask()
    assert lab.attempts == 1, "the connection serves the next request"
    end.send(OK)
    assert again.body == b"ok"


def test_the_headers_of_the_response_to_head_are_kept() -> None:
    lab = Lab()
    asked, end = lab.asked(b"HEAD")
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert asked.response.raw_headers == [(b"Content-Length", b"5")]


def test_interim_responses_are_handed_on_before_the_final_one() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert asked.interim == [(100, b"Continue", [])]
    assert asked.is_pending
    end.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n" + OK)
    assert asked.interim[1:] == [(103, b"Early Hints", [(b"Link", b"</a>"), (b"Link", b"</b>")])]
    assert asked.response.code == 200
    assert asked.response.phrase == b"OK"
    assert asked.response.raw_headers == [(b"Content-Length", b"2")]
    assert asked.body == b"ok"


def test_interim_responses_without_a_receiver_are_ignored() -> None:
    lab = Lab()
    result = lab.agent.request(b"GET", make_server().url + b"/")
    end = lab.accept()
    end.send(b"HTTP/1.1 102 Processing\r\n\r\n" + OK)
    assert result.result.code == 200  # type: ignore[attr-defined]


def test_an_upgrade_that_was_not_requested_is_refused() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nframes")
    assert isinstance(asked.error, UpstreamProtocolError)
    assert asked.interim == []
    assert end.is_cut
    lab.assert_nothing_left()


def test_an_upgrade_that_the_server_merely_offers_is_an_ordinary_response() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok")
    assert asked.body == b"ok"


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        (b"HTTP/1.1 200 OK", b"OK"),
        (b"HTTP/1.1 200 ", b""),
        (b"HTTP/1.1 200", b""),
        (b"HTTP/1.1 200 Not  Quite: (so)", b"Not  Quite: (so)"),
        (b"HTTP/1.1 200 Tr\xe8s bien", b"Tr\xe8s bien"),
        (b"HTTP/1.1 200 200 200", b"200 200"),
    ],
)
def test_the_reason_phrase_is_kept_as_it_came(line: bytes, phrase: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(line + b"\r\nContent-Length: 2\r\n\r\nok")
    assert asked.response.phrase == phrase
    assert asked.response.code == 200
    assert asked.body == b"ok"


def test_headers_keep_their_order_their_case_and_their_repetitions() -> None:
    lab = Lab()
    asked, end = lab.asked()
    headers = [
        (b"set-cookie", b"a=1"),
        (b"X-One", b"1"),
        (b"Set-Cookie", b"b=2"),
        (b"x-one", b""),
        (b"Content-LENGTH", b"2"),
        (b"X-Latin", b"caf\xe9"),
        (b"Set-Cookie", b"a=1"),
    ]
    end.send(b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in headers) + b"\r\nok")
    assert asked.response.raw_headers == headers
    assert asked.response.headers.getRawHeaders(b"set-cookie") == [b"a=1", b"b=2", b"a=1"]
    assert asked.body == b"ok"


def test_the_length_is_known_where_the_server_declares_it() -> None:
    lab = Lab()
    declared, end = lab.asked()
    end.send(OK)
    assert declared.response.length == 2
    open_ended = lab.ask()
    end.send(CHUNKED)
    assert open_ended.response.length is UNKNOWN_LENGTH


def test_each_segment_is_handed_on_at_once_and_in_one_piece() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(CHUNKED)
    assert asked.reader is not None
    assert asked.reader.pieces == []
    end.send(b"3\r\none\r\n3\r\ntwo\r\n")
    assert asked.reader.pieces == [b"onetwo"]
    end.send(b"5\r\nth")
    assert asked.reader.pieces == [b"onetwo", b"th"]
    end.send(b"ree\r\n0\r\n\r\n")
    assert asked.reader.pieces == [b"onetwo", b"th", b"ree"]
    assert asked.reader.is_whole


def test_the_response_says_that_it_is_complete_before_the_last_piece_and_not_earlier() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
    end.send(b"two")
    assert asked.reader is not None
    assert asked.reader.complete == [False, True]


# any split gives the same

TOKEN = st.text("abcdefgXYZ-0123456789", min_size=1, max_size=12).map(str.encode)
VALUE = st.binary(max_size=12).map(lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F).strip())
HEADERS = st.lists(st.tuples(TOKEN.map(lambda name: b"X-" + name), VALUE), max_size=4)
BODY = st.lists(st.binary(min_size=1, max_size=20), max_size=4)
INTERIM = st.lists(st.tuples(st.sampled_from((100, 102, 103)), HEADERS), max_size=2)


def _head(status: int, reason: bytes, headers: HeaderPairs) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (status, reason)] + [b"%b: %b" % pair for pair in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _segments(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut % len(raw) for cut in cuts} - {0}), len(raw)]
    return [raw[begin:end] for begin, end in pairwise(places)]


@settings(max_examples=150, deadline=None)
@given(
    interim=INTERIM,
    reason=VALUE,
    headers=HEADERS,
    pieces=BODY,
    framing=st.sampled_from(("length", "chunked", "close")),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_a_response_reads_the_same_wherever_it_is_split(
    interim: list[tuple[int, HeaderPairs]],
    reason: bytes,
    headers: HeaderPairs,
    pieces: list[bytes],
    framing: str,
    cuts: list[int],
) -> None:
    body = b"".join(pieces)
    raw = b"".join(_head(status, b"Wait", more) for status, more in interim)
    if framing == "length":
        headers = [*headers, (b"Content-Length", b"%d" % len(body))]
        raw += _head(200, reason, headers) + body
    elif framing == "chunked":
        headers = [(b"Transfer-Encoding", b"chunked"), *headers]
        raw += _head(200, reason, headers) + b"".join(b"%X;x\r\n%b\r\n" % (len(p), p) for p in pieces)
        raw += b"0\r\nX-Trailer: 1\r\n\r\n"
    else:
        raw += _head(200, reason, headers) + body
    lab = Lab()
    asked, end = lab.asked()
    for segment in _segments(raw, cuts):
        end.send(segment)
    if framing == "close":
        end.close()
    assert asked.interim == [(status, b"Wait", more) for status, more in interim]
    assert asked.response.phrase == reason
    assert asked.response.raw_headers == headers
    assert asked.body == body
    assert asked.reader is not None
    assert all(asked.reader.pieces)
    assert len(lab.agent.pool) == (framing != "close")


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 Tr\xe8s bien\r\nX-Empty:\r\nX-A: b \r\nContent-Length: 3\r\n\r\none",
        CHUNKED + b"3;x=y\r\none\r\n1\r\n!\r\n0\r\nX-Trailer: v\r\n\r\n",
    ],
)
def test_a_response_reads_the_same_split_at_each_of_its_bytes(raw: bytes) -> None:
    def outcome(segments: list[bytes]) -> object:
        lab = Lab()
        asked, end = lab.asked()
        for segment in segments:
            end.send(segment)
        return asked.interim, asked.response.code, asked.response.phrase, asked.response.raw_headers, asked.body

    whole = outcome([raw])
    for place in range(1, len(raw)):
        assert outcome([raw[:place], raw[place:]]) == whole, place
    assert outcome([raw[place : place + 1] for place in range(len(raw))]) == whole


# what is no HTTP


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=40),
            st.sampled_from(
                (
                    OK,
                    CHUNKED,
                    b"HTTP/1.1 ",
                    b"200 ",
                    b"\r\n",
                    b"\r\n\r\n",
                    b"Content-Length: 1",
                    b"5\r\n",
                    b"0\r\n",
                    b":",
                )
            ),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_bytes_make_it_raise_or_leave_a_request_without_an_end(segments: list[bytes]) -> None:
    lab = Lab()
    asked, end = lab.asked()
    for segment in segments:
        end.send(segment)
    end.reset()
    lab.turn()
    assert not asked.is_pending
    if asked.error is not None:
        assert isinstance(asked.error, UpstreamProtocolError | UpstreamUnreachable)
    else:
        assert asked.reader is not None
        assert asked.reader.is_whole or isinstance(asked.cause, UpstreamProtocolError)
    lab.assert_nothing_left()


@settings(max_examples=100, deadline=None)
@example(b"\x15\x03")
@given(st.binary(min_size=1, max_size=60).filter(lambda raw: not raw.lstrip(b"\r\n").startswith(b"H")))
def test_random_bytes_are_no_response(raw: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(raw)
    end.reset()
    # an alert of TLS is told as what it is: the server wants https
    expected = UpstreamUnreachable if raw.startswith(b"\x15\x03") else UpstreamProtocolError
    assert isinstance(asked.error, expected)
    lab.assert_nothing_left()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"<html>hello</html>",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nnonsense",
    ],
)
def test_what_is_not_http_is_refused_and_the_connection_cut(raw: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(raw)
    assert isinstance(asked.error, UpstreamProtocolError)
    assert end.is_cut
    lab.assert_nothing_left()


@pytest.mark.parametrize("status", [b"000", b"099"])
def test_a_status_that_http_does_not_have_is_refused(status: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 " + status + b" Odd\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(asked.error, UpstreamProtocolError)
    assert end.is_cut


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"chunked, gzip", b"identity"])
def test_a_transfer_coding_that_the_client_would_not_be_told_of_is_refused(coding: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n")
    assert isinstance(asked.error, UpstreamProtocolError)
    assert end.is_cut


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 65_536),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 1_000),
    ],
    ids=["one header", "interim responses"],
)
def test_a_head_without_end_is_given_up(first: bytes, then: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(first)
    for _ in range(10):
        end.send(then)
    assert isinstance(asked.error, UpstreamProtocolError)
    assert end.is_cut


@pytest.mark.parametrize("status", [299, 418, 599, 600, 999])
def test_a_status_that_nobody_has_registered_is_relayed(status: int) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(b"HTTP/1.1 %d Odd\r\nContent-Length: 0\r\n\r\n" % status)
    assert asked.response.code == status
    assert asked.body == b""


@pytest.mark.parametrize(
    "broken", [b"x\r\n", b"-1\r\na\r\n", b"2\r\nokk\r\n", b"2 \r\nok", b"2\nok\n", b"1" * 20 + b"\r\n"]
)
def test_a_broken_chunk_ends_the_body_after_what_came_before_it(broken: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(CHUNKED + b"4\r\ngood\r\n" + broken)
    assert asked.reader is not None
    assert asked.reader.body.startswith(b"good")
    assert isinstance(asked.cause, UpstreamProtocolError)
    assert not asked.response.complete
    assert end.is_cut
    lab.assert_nothing_left()
