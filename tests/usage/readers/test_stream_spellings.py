"""However a server or a proxy spells a stream, its usage event is found, and every other byte passes.

The spellings are those of the WHATWG HTML standard, "Interpreting an event stream".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.usage.usage_texts import PATIENT, TEXTS, pieces, spellings
from twisted_vllm.api_routes import classify
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.usage.meter import UsageMeter
from twisted_vllm.usage.pricing import FREE, RoutePricing
from twisted_vllm.usage.readers.document import MAX_WHOLE
from twisted_vllm.usage.readers.stream_filter import MAX_HELD, Fingerprint, StreamFilter
from twisted_vllm.usage.readers.streams import ChunkStream
from twisted_vllm.usage.records import Usage

BOM = b"\xef\xbb\xbf"
DONE = b"data: [DONE]\n\n"
COUNTS = {"prompt_tokens": 8, "total_tokens": 14, "completion_tokens": 6}
USED = Usage(prompt_tokens=8, completion_tokens=6, total_tokens=14)
#: how a server may say that a chunk has no choices
NO_CHOICES: list[dict[str, Any]] = [{"choices": []}, {"choices": None}, {}]


def passed(parts: Iterable[bytes]) -> tuple[bytes, ChunkStream]:
    """Return what the client gets of a chat, and its reader."""
    reader = ChunkStream(chat=True)
    stream = StreamFilter(reader, Fingerprint())
    out = [stream.feed(part) for part in parts]
    return b"".join(out) + stream.finish(), reader


def found(reader: ChunkStream) -> tuple[Usage | None, Usage, bool]:
    return reader.usage(), reader.estimate(5), reader.failed


def event(**body: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(body, separators=(",", ":")).encode()


def content(text: str = "a", ends: str | None = None, **more: Any) -> bytes:
    return event(id="c", choices=[{"index": 0, "delta": {"content": text}, "finish_reason": ends}], **more)


@pytest.mark.parametrize("no_choices", NO_CHOICES)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("field", [b"data: ", b"data:"])
def test_the_usage_event_is_removed_in_every_spelling(end: bytes, field: bytes, no_choices: dict[str, Any]) -> None:
    blocks = [content("a"), content("b"), event(id="c", **no_choices, usage=COUNTS), DONE]
    first, second, usage, done = (block.replace(b"\n", end).replace(b"data: ", field) for block in blocks)
    for mark in (b"", BOM):
        stream = mark + first + second + usage + done
        for size in (1, 2, 3, 7, 100, len(stream)):
            out, reader = passed(stream[at : at + size] for at in range(0, len(stream), size))
            assert out == mark + first + second + done
            assert reader.usage() == USED


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_that_came_whole_passes_at_once_with_any_line_ends(end: bytes) -> None:
    stream = StreamFilter(ChunkStream(chat=True))
    blocks = [block.replace(b"\n", end) for block in (content("a"), content("b"), event(usage=COUNTS), DONE)]
    assert [stream.feed(block) for block in blocks] == [blocks[0], blocks[1], b"", blocks[3]]


def test_a_stream_that_names_the_identity_encoding_is_filtered_as_well() -> None:
    pricing = RoutePricing(classify(b"POST", b"/v1/chat/completions"), FREE)
    meter = UsageMeter(pricing, 5, 1, usage_injected=True)
    headers = [(b"Content-Type", b"text/event-stream"), (b"Content-Encoding", b" Identity")]
    meter.start(ResponseHead(200, b"OK", headers))
    assert meter.feed(content("a") + event(usage=COUNTS) + DONE) == content("a") + DONE


def test_comments_and_other_fields_of_the_block_go_with_the_usage() -> None:
    usage = event(choices=[], usage=COUNTS)
    before, after = b": a comment\nid: 7\nevent: message\n", b"retry: 1\nnonsense\n: another\n\n"
    stream = b": ping\n\n" + content("a") + before + usage[:-1] + after + b": ping\n\n" + DONE
    for size in (1, 50, len(stream)):
        out, reader = passed(stream[at : at + size] for at in range(0, len(stream), size))
        assert out == b": ping\n\n" + content("a") + b": ping\n\n" + DONE
        assert reader.usage() == USED


def test_the_data_of_the_usage_event_may_stand_on_several_lines() -> None:
    usage = b'data: {"choices" : [ ],\r\ndata:"usage"\rdata\ndata: :{"prompt_tokens":8,"completion_tokens":6}}\n\n'
    out, reader = passed([content("a") + usage + DONE])
    assert out == content("a") + DONE
    assert reader.usage() == Usage(prompt_tokens=8, completion_tokens=6)


def test_an_event_without_a_blank_line_is_none_and_its_bytes_pass() -> None:
    stream = content("a") + event(choices=[], usage=COUNTS)[:-1]
    for parts in ([stream], [stream[:-1], b"\n"], [stream, b""]):
        out, reader = passed(parts)
        assert out == stream
        assert reader.usage() is None


@pytest.mark.parametrize(
    "more",
    [
        {"choices": [{"index": 0, "delta": {"content": "a"}}]},
        {"choices": [{}]},
        {"text": "a"},
        {"choices": None, "delta": {"content": "a"}},
        {"output": [1], "choices": None},
        {"error": {"message": "no"}},
        {"error": {"message": "no"}, "choices": []},
        {"type": "error", "choices": []},
    ],
)
def test_an_event_with_more_than_usage_is_never_removed(more: dict[str, Any]) -> None:
    stream = [content("a"), event(id="c", **more, usage=COUNTS), DONE]
    for parts in (stream, [b"".join(stream)], [bytes([byte]) for byte in b"".join(stream)]):
        assert passed(parts)[0] == b"".join(stream)


def test_members_that_say_nothing_are_no_content() -> None:
    usage = event(id="c", object="o", model="m", error=None, text="", usage=COUNTS, metrics={"a": 1})
    assert passed([content("a"), usage, DONE])[0] == content("a") + DONE


@pytest.mark.parametrize("large", ["delta", "logprobs"])
def test_a_large_event_with_usage_so_far_is_not_removed(large: str) -> None:
    choice = {"index": 0, large: {"content": "x" * (2 * MAX_WHOLE)}}
    stream = event(choices=[choice], usage=COUNTS) + event(choices=[], usage=COUNTS)
    for size in (1000, 50_000, len(stream)):
        out, reader = passed(stream[at : at + size] for at in range(0, len(stream), size))
        assert out == stream
        assert reader.usage() == USED


@pytest.mark.parametrize(
    "text",
    [
        '"usage":{"prompt_tokens":1}',
        '\n\ndata: {"choices":[],"usage":{"prompt_tokens":1}}\n\n',
        '\r\rdata:{"usage":{"prompt_tokens":1}}\r\r',
        '{"choices":null,"usage":{"prompt_tokens":1}}',
    ],
)
def test_text_about_usage_passes(text: str) -> None:
    stream = [content(text), content(text, "stop"), event(choices=[], usage=COUNTS), DONE]
    for parts in (stream, [b"".join(stream)]):
        out, reader = passed(parts)
        assert out == b"".join([*stream[:2], DONE])
        assert reader.usage() == USED


def test_a_mark_after_the_start_is_no_mark() -> None:
    """By the standard, the line then has another name than ``data``."""
    stream = [content("a"), BOM + event(choices=[], usage=COUNTS), DONE]
    for parts in (stream, [b"".join(stream)]):
        out, reader = passed(parts)
        assert out == b"".join(stream)
        assert reader.usage() is None
        assert reader.chunks == 1


def test_of_a_block_with_a_long_comment_little_is_held() -> None:
    stream = StreamFilter(ChunkStream())
    fed = out = 0
    for _ in range(100):
        part = b":" + b"x" * 500 + b"\r"
        fed, out = fed + len(part), out + len(stream.feed(part))
        assert fed - out <= MAX_HELD


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A chat in any spelling, and what its client is to get."""
    end: bytes = draw(st.sampled_from([b"\n", b"\r\n", b"\r", b""]))
    extras = st.sampled_from([b": x", b":", b"id: 1", b"retry: 1", b"event: e", b"nonsense", b"dat: {}"])

    def line_end() -> bytes:
        return end or draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))

    def block(body: Any) -> bytes:
        data = draw(spellings(body))
        field = draw(st.sampled_from([b"data:", b"data: "]))
        is_split = draw(st.booleans())
        lines = [field + data[:1], field + data[1:]] if is_split else [field + data]
        for extra in draw(st.lists(extras, max_size=2)):
            lines.insert(draw(st.integers(0, len(lines))), extra)
        ends = [line_end() for _ in lines]
        # an LF after a lone CR would belong to it
        blank = line_end() if end or ends[-1] != b"\r" else b"\r"
        return b"".join(line + each for line, each in zip(lines, ends, strict=True)) + blank

    texts = draw(st.lists(TEXTS, max_size=5))
    blocks = [block({"choices": [{"index": 0, "delta": {"content": text}, "usage": text}]}) for text in texts]
    for at in draw(st.lists(st.integers(0, len(blocks)), max_size=2)):
        blocks.insert(at, b": ping" + (end or b"\n") * 2)
    if draw(st.booleans()) and blocks:
        blocks[0] = BOM + blocks[0]
    usage = block({"id": "c", **draw(st.sampled_from(NO_CHOICES)), "usage": COUNTS})
    tail = draw(st.sampled_from([b"data: [DONE]" + (end or b"\n") * 2, b"data: {", b"", b"x"]))
    return b"".join([*blocks, usage, tail]), b"".join([*blocks, tail])


@PATIENT
@given(streams(), st.data())
def test_any_spelling_in_any_pieces_gives_the_client_all_but_the_usage(
    stream: tuple[bytes, bytes], data: st.DataObject
) -> None:
    sent, expected = stream
    out, reader = passed(data.draw(pieces(sent)))
    assert out == expected
    assert reader.usage() == USED
    assert found(reader) == found(passed([sent])[1])


@PATIENT
@given(st.lists(TEXTS, max_size=5), st.booleans(), st.data())
def test_line_ends_change_neither_usage_nor_estimate(texts: list[str], reports: bool, data: st.DataObject) -> None:
    stream = b"".join(content(text) for text in texts) + event(usage=COUNTS) * reports + DONE
    expected = found(passed([stream])[1])
    for end in (b"\r\n", b"\r"):
        assert found(passed(data.draw(pieces(stream.replace(b"\n", end))))[1]) == expected


#: what streams are made of, whole and broken
FRAGMENTS = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"\n\n", BOM, b":", b"data:", b"data: ", b"event: error", b"id: 1", b"{", b"}", b"x"),
        *(content("a"), content("b", "stop"), content("c", "stop", system_fingerprint="f"), content("x" * MAX_HELD)),
        *(content("y" * MAX_HELD, "length"), content("d", usage=COUNTS), DONE, b": ping\n\n"),
        *(event(choices=[], usage=COUNTS, system_fingerprint="fp"), event(usage=COUNTS), event(error={"message": "e"})),
        event(choices=[], usage=COUNTS, system_fingerprint="fp").replace(b"\n", b"\r"),
        content("e", "stop").replace(b"\n", b"\r\n"),
    ]
)


@PATIENT
@given(st.lists(FRAGMENTS | st.binary(max_size=9), max_size=9).map(b"".join), st.data())
def test_pieces_make_no_difference_whatever_comes(stream: bytes, data: st.DataObject) -> None:
    whole_out, whole = passed([stream])
    out, reader = passed(data.draw(pieces(stream)))
    assert out == whole_out
    assert found(reader) == found(whole)
