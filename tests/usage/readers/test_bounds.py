"""What a hostile or broken server costs: the time of each piece of its answer, and what stays of it in memory."""

from __future__ import annotations

import gc
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.usage_reading import reader_for
from twisted_vllm.usage.readers.document import MAX_VALUE, MAX_WHOLE
from twisted_vllm.usage.readers.registry import MAX_INFLATED, UsageReader
from twisted_vllm.usage.readers.sse import MAX_LINE_ENDS
from twisted_vllm.usage.readers.stream_filter import MAX_FINGERPRINT, Fingerprint, StreamFilter
from twisted_vllm.usage.readers.streams import MAX_CHOICES, ChunkStream
from twisted_vllm.usage.records import Usage

JSON, SSE = b"application/json", b"text/event-stream"
#: what is read from a connection at once, in bytes
PIECE = 65_536
#: the most that a piece may take, in seconds of CPU time
MOST_SECONDS = 0.020
#: the most that a reader may keep, in bytes
MOST_KEPT = 400_000

STREAMS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/cohere/v2/chat"]

EVENTS = {
    "line feeds": b"\n",
    "CRLF": b"\r\n",
    "carriage returns": b"\r",
    "comments": b":\n",
    "empty comments": b":\n\n",
    "unknown fields": b"a\n",
    "lines of data": b"data:\n",
    "empty events": b"data:\n\n",
    "tiny events": b"data:{}\n\n",
    "named events": b"event:error\n\n",
    "broken usage": b'data:{"usage":1}\n\n',
    "usage": b'data:{"usage":{}}\n\n',
    "broken errors": b'data:{"error"}\n\n',
    "ends of choices": b'data:{"a":1,"finish_reason":"x"}\n\n',
    "usage of a choice": b'data:{"usage":{},"choices":[{"index":1}]}\n\n',
    "ends of responses": b'event: response.completed\ndata: {"response":{"usage":{}}}\n\n',
    "one endless line": b"x",
    "one endless value": b'data: {"usage":{"a":"' + b"x" * PIECE,
}

DOCUMENTS = {
    "strings like the key": b'"usage",',
    "keys": b'"usage":1,',
    "keys of objects": b'"usage":{},',
    "keys of texts": b'"usage":"",',
    "keys within keys": b'"usage":{',
    "keys and spaces": b'"usage"    :    1,',
    "escaped keys": b'\\"usage"',
    "quotes": b'"',
    "backslashes": b"\\",
    "depth": b"[",
    "large values": b'"usage":' + b"[" * 8_000 + b"]" * 8_000 + b",",
    "values that do not end": b'"usage":' + b"[" * 16_000,
    "strings that do not end": b'"usage":"' + b"x" * 16_000,
}


def repeated(unit: bytes, size: int = PIECE) -> bytes:
    return (unit * (size // len(unit) + 1))[:size]


def packed(unit: bytes, size: int) -> Iterator[bytes]:
    """Yield the pieces of a compressed answer."""
    whole = zlib.compress(unit * (size // len(unit)), 9)
    return (whole[at : at + PIECE] for at in range(0, len(whole), PIECE))


def slowest(make: Callable[[], Callable[[bytes], object]], pieces: list[bytes]) -> float:
    """Return the CPU time of the slowest piece, in seconds; each is measured several times."""
    fastest = [float("inf")] * len(pieces)
    for _ in range(4):
        feed = make()
        for number, piece in enumerate(pieces):
            began = time.thread_time()
            feed(piece)
            fastest[number] = min(fastest[number], time.thread_time() - began)
    return max(fastest)


def kept_by(root: object) -> int:
    """Return the bytes of an object and of all that it refers to, less what it shares: classes, functions, modules."""
    seen: dict[int, Any] = {}
    waiting = [root]
    while waiting:
        found = waiting.pop()
        if id(found) not in seen and not isinstance(found, (type, type(gc), type(kept_by), type(kept_by.__code__))):
            seen[id(found)] = found
            waiting.extend(gc.get_referents(found))
            if isinstance(found, dict):
                # of a dictionary of texts, the collector visits the values alone
                waiting.extend(found)
    return sum(map(sys.getsizeof, seen.values()))


@pytest.mark.parametrize("route", STREAMS)
@pytest.mark.parametrize("what", EVENTS)
def test_no_piece_of_a_stream_takes_20_ms(route: str, what: str) -> None:
    pieces = [repeated(EVENTS[what])] * 2
    assert slowest(lambda: reader_for(route, SSE).feed, pieces) < MOST_SECONDS


@pytest.mark.parametrize("what", EVENTS)
def test_no_piece_of_a_filtered_stream_takes_20_ms(what: str) -> None:
    pieces = [repeated(EVENTS[what])] * 2
    assert slowest(lambda: StreamFilter(ChunkStream(chat=True)).feed, pieces) < MOST_SECONDS


@pytest.mark.parametrize("begin", [b'{"a":1,', b'[{"a":', b'{"a":"'])
@pytest.mark.parametrize("what", DOCUMENTS)
def test_no_piece_of_a_json_answer_takes_20_ms(what: str, begin: bytes) -> None:
    pieces = [begin + repeated(DOCUMENTS[what]), repeated(DOCUMENTS[what])]
    assert slowest(lambda: reader_for("/v1/embeddings", JSON).feed, pieces) < MOST_SECONDS


@pytest.mark.parametrize("what", EVENTS)
def test_no_piece_of_a_compressed_stream_takes_20_ms(what: str) -> None:
    pieces = list(packed(EVENTS[what], 4_000_000))
    assert slowest(lambda: reader_for("/v1/completions", SSE, b"gzip").feed, pieces) < MOST_SECONDS


@pytest.mark.parametrize("what", DOCUMENTS)
def test_no_piece_of_a_compressed_json_answer_takes_20_ms(what: str) -> None:
    pieces = list(packed(DOCUMENTS[what], 4_000_000))
    assert slowest(lambda: reader_for("/v1/embeddings", JSON, b"gzip").feed, pieces) < MOST_SECONDS


def test_many_tiny_pieces_of_a_large_answer_are_not_searched_one_by_one() -> None:
    reader = reader_for("/v1/embeddings", JSON)
    for at in range(MAX_WHOLE):
        reader.feed(b'{"a":"'[at : at + 1] or b"x")
    assert slowest(lambda: reader.feed, [b"xx"]) < MOST_SECONDS


def pieces_of_every_kind() -> Iterator[tuple[str, bytes, list[bytes]]]:
    for route in STREAMS:
        yield from ((route, SSE, [repeated(each)] * 3) for each in EVENTS.values())
        # so few lines that all of them are read
        yield from ((route, SSE, [repeated(each, 1_000)] * 80) for each in EVENTS.values())
        yield (
            route,
            SSE,
            [b'data: {"choices":[{"index":%d}],"usage":{}}\n\n' % number for number in range(2 * MAX_CHOICES)],
        )
        yield route, SSE, [b"data: x", *[b"yz"] * 34_000]
    for unit in DOCUMENTS.values():
        yield "/v1/embeddings", JSON, [repeated(unit)] * 3
        yield "/v1/embeddings", JSON, [unit[at : at + 2] for at in range(0, len(unit), 2)] * 5


def test_what_a_reader_keeps_is_bounded_whatever_comes() -> None:
    most = 0
    for route, kind, pieces in pieces_of_every_kind():
        reader: UsageReader = reader_for(route, kind)
        fed = StreamFilter(reader) if isinstance(reader, ChunkStream) else reader
        for piece in pieces:
            fed.feed(piece)
        most = max(most, kept_by(fed))
    print(f"at most {most} bytes")
    assert most < MOST_KEPT


def test_of_a_stream_with_more_choices_than_vllm_runs_the_first_are_counted() -> None:
    stream = ChunkStream()
    for number in range(MAX_CHOICES + 10):
        stream.feed(b'data: {"choices":[{"index":%d}],"usage":{"completion_tokens":1}}\n\n' % number)
    assert stream.reported == MAX_CHOICES
    assert stream.chunks == MAX_CHOICES + 10


def test_a_long_fingerprint_is_put_back_and_not_remembered() -> None:
    fingerprint = Fingerprint()
    stream = StreamFilter(ChunkStream(), fingerprint)
    name = "f" * MAX_FINGERPRINT
    end = b'data: {"choices":[{"index":0,"finish_reason":"stop"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1},"system_fingerprint":"%b"}\n\n' % name.encode()
    assert name.encode() in stream.feed(end.replace(b'{"index"', b'{"x":1,"index"')) + stream.feed(usage)
    assert fingerprint.value == b""


# what an honest server sends is read exactly


def test_the_usage_of_an_answer_of_100_mb_is_read() -> None:
    vector = b'{"object":"embedding","embedding":[' + b"-0.0123456789," * 4_600 + b'0.5],"index":0},'
    reader = reader_for("/v1/embeddings", JSON)
    reader.feed(b'{"id":"embd-1","object":"list","data":[')
    for _ in range(100_000_000 // len(vector)):
        reader.feed(vector)
    reader.feed(b'{}],"usage":{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0}}')
    assert reader.usage() == Usage(7, total_tokens=7)
    assert kept_by(reader) < MOST_KEPT


def chunks(number: int, line_end: bytes) -> bytes:
    """Return an honest stream: the shortest chunks of vLLM, and the usage."""
    chunk = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [{"index": 0}]}
    last = {"id": "cmpl-1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": number}}
    lines = [*[json.dumps(chunk)] * number, json.dumps(last), "[DONE]"]
    return b"".join(b"data: %b%b%b" % (line.encode(), line_end, line_end) for line in lines)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_the_usage_of_a_stream_that_comes_in_large_pieces_is_read(line_end: bytes) -> None:
    whole = chunks(5_000, line_end)
    stream = ChunkStream()
    for at in range(0, len(whole), PIECE):
        stream.feed(whole[at : at + PIECE])
    assert stream.usage() == Usage(3, completion_tokens=5_000)
    assert not stream.gave_up


def test_the_usage_of_a_compressed_stream_is_read() -> None:
    whole = chunks(5_000, b"\n")
    packer = zlib.compressobj(wbits=31)
    reader = reader_for("/v1/completions", SSE, b"gzip")
    for at in range(0, len(whole), 20_000):
        reader.feed(packer.compress(whole[at : at + 20_000]) + packer.flush(zlib.Z_SYNC_FLUSH))
    reader.feed(packer.flush())
    assert reader.usage() == Usage(3, completion_tokens=5_000)


def test_the_usage_at_the_end_of_a_compressed_answer_is_read_however_many_strings_it_has() -> None:
    tokens = json.dumps([{"token": " a"}] * 20_000).encode()
    answer = b'{"choices":[%b],"usage":{"prompt_tokens":3,"completion_tokens":9,"total_tokens":12}}' % tokens
    assert MAX_VALUE < len(answer) < MAX_INFLATED
    reader = reader_for("/v1/completions", JSON, b"gzip")
    whole = zlib.compress(answer, 9)
    assert len(whole) < PIECE
    reader.feed(whole)
    assert reader.usage() == Usage(3, completion_tokens=9, total_tokens=12)


def test_a_stream_of_too_many_lines_passes_unchanged_and_is_estimated() -> None:
    chunk = b'data: {"choices":[{"index":0,"text":"a"}]}\n\n'
    blank = b"\n" * (MAX_LINE_ENDS + 1)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
    reader = ChunkStream()
    stream = StreamFilter(reader)
    came = [stream.feed(each) for each in (chunk, b'data: {"held":', blank, usage, chunk)]
    assert b"".join([*came, stream.finish()]) == chunk + b'data: {"held":' + blank + usage + chunk
    assert reader.gave_up
    assert reader.usage() is None
    assert reader.estimate(5) == Usage(5, completion_tokens=1, total_tokens=6, estimated=True)
