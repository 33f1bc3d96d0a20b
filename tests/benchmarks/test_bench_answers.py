"""The load generator reads an answer the same however it is split, and counts only what is whole as good."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.answers import AnswerReader, BadAnswer, EventCounter
from benchmarks.load import judge

DONE = b"data: [DONE]\n\n"


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


def chunked(*chunks: bytes, head: bytes = b"") -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + head + b"\r\n" + framed + b"0\r\n\r\n"


def read(*pieces: bytes) -> AnswerReader:
    reader = AnswerReader()
    for piece in pieces:
        reader.feed(piece)
    return reader


CUTS = st.lists(st.integers(0, 10_000), max_size=12)
EVENTS = st.lists(st.text("ab {}:\u00e9", min_size=1, max_size=20), max_size=8)


@settings(deadline=None)
@given(events=EVENTS, cuts=CUTS)
def test_events_are_counted_wherever_the_stream_is_split(events: list[str], cuts: list[int]) -> None:
    stream = b"".join(b"data: " + event.encode() + b"\n\n" for event in events)
    open_stream, whole = EventCounter(), EventCounter()
    for piece in pieces_of(stream, cuts):
        open_stream.feed(piece)
    for piece in pieces_of(stream + DONE, cuts):
        whole.feed(piece)
    assert (open_stream.count, open_stream.ended) == (len(events), False)
    assert (whole.count, whole.ended) == (len(events), True)


@settings(deadline=None)
@given(stream=st.text("a\n", max_size=30), cuts=CUTS)
def test_runs_of_line_ends_count_the_same_wherever_they_are_split(stream: str, cuts: list[int]) -> None:
    whole, split = EventCounter(), EventCounter()
    whole.feed(stream.encode())
    for piece in pieces_of(stream.encode(), cuts):
        split.feed(piece)
    assert split.count == whole.count


@settings(deadline=None)
@given(events=EVENTS, cuts=CUTS, length=st.booleans())
def test_an_answer_reads_the_same_wherever_it_is_split(events: list[str], cuts: list[int], length: bool) -> None:
    parts = [b"data: " + event.encode() + b"\n\n" for event in events] + [DONE]
    body = b"".join(parts)
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    answer = plain if length else chunked(*parts)
    reader = AnswerReader()
    for piece in pieces_of(answer, cuts):
        assert not reader.complete
        reader.feed(piece)
    assert reader.complete
    assert (reader.status, reader.body_bytes, reader.events.count) == (200, len(body), len(events))
    judge(reader, stream=True)


@settings(deadline=None)
@given(keep=st.integers(0, 10_000))
def test_an_answer_that_was_cut_short_is_never_complete(keep: int) -> None:
    answer = chunked(b"data: a\n\n", DONE)
    assert not read(answer[: keep % len(answer)]).complete


def test_trailers_belong_to_the_answer() -> None:
    reader = read(chunked(b"x")[:-2] + b"checksum: 7\r\n", b"\r\n")
    assert reader.complete
    assert reader.body_bytes == 1


def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    assert read(chunked(b"x", head=b"Connection: Close\r\n")).closes
    assert not read(chunked(b"x")).closes


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"220 mail.example.com ESMTP\r\n\r\n", "not an HTTP/1.1 answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "without a length"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", "a chunk without a length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", "after the end"),
        (chunked(b"x") + b"y", "after the end"),
        (b"x" * 70_000, "a line without an end"),
    ],
)
def test_an_invalid_answer_is_reported(answer: bytes, told: str) -> None:
    with pytest.raises(BadAnswer, match=told):
        read(answer)


def test_an_error_is_quoted_with_its_status() -> None:
    body = b'{"error":\n "no such model"}'
    answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    with pytest.raises(BadAnswer, match=r'status 404: \{"error": "no such model"\}'):
        judge(read(answer), stream=False)


def test_a_stream_without_its_last_event_is_not_good() -> None:
    with pytest.raises(BadAnswer, match=r"\[DONE\]"):
        judge(read(chunked(b"data: a\n\n")), stream=True)
