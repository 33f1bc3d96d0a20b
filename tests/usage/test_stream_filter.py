"""A stream with injected usage reaches the client as if usage had not been requested.

``answers/chat.sse`` and ``answers/chat_usage.sse`` (and completions likewise) are one request to vLLM 0.32.0, at
temperature 0, without and with ``include_usage``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.usage.usage_texts import PATIENT, TEXTS, pieces
from twisted_vllm.usage.readers.stream_filter import MAX_HELD, MAX_HELD_ENDS, Fingerprint, StreamFilter
from twisted_vllm.usage.readers.streams import ChunkStream
from twisted_vllm.usage.records import Usage

ANSWERS = Path(__file__).parent / "answers"
DONE = b"data: [DONE]\n\n"


def passed(
    parts: Iterable[bytes], chat: bool = True, fingerprint: Fingerprint | None = None
) -> tuple[bytes, ChunkStream]:
    reader = ChunkStream(chat=chat)
    stream = StreamFilter(reader, fingerprint)
    out = [stream.feed(part) for part in parts]
    return b"".join(out) + stream.finish(), reader


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def events_of(stream: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in stream.split(b"\n\n")[:-1]]


def without_names(stream: bytes) -> bytes:
    """Leave out what differs between any two answers: the id and the time."""
    return re.sub(rb'"created":\d+', b'"created":0', re.sub(rb'"id":"[a-z]+-[0-9a-f]+"', b'"id":""', stream))


def chunk(content: str | None = None, ends: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": {"content": content}, "logprobs": None, "finish_reason": ends}
    body = {"id": "chatcmpl-1", "choices": [choice], **more}
    return b"data: %b\n\n" % json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def usage_event(fingerprint: str | None = "vllm-0.32.0-13f59189", choices: Iterable[Any] = ()) -> bytes:
    usage = {"prompt_tokens": 8, "total_tokens": 14, "completion_tokens": 6}
    body: dict[str, Any] = {"id": "chatcmpl-1", "choices": list(choices), "usage": usage}
    if fingerprint is not None:
        body["system_fingerprint"] = fingerprint
    return b"data: %b\n\n" % json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def marked(event: bytes, fingerprint: bytes = b'"vllm-0.32.0-13f59189"') -> bytes:
    return event[:-3] + b',"system_fingerprint":' + fingerprint + event[-3:]


@pytest.mark.parametrize("name", ["chat", "completions"])
@pytest.mark.parametrize("size", [None, 1, 3, 50, 700, 10_000])
def test_the_client_gets_the_bytes_of_a_direct_stream(name: str, size: int | None) -> None:
    asked = (ANSWERS / f"{name}_usage.sse").read_bytes()
    direct = (ANSWERS / f"{name}.sse").read_bytes()
    out, stream = passed(events_of(asked) if size is None else cut(asked, size), chat=name == "chat")
    assert without_names(out) == without_names(direct)
    prompt = 8 if name == "chat" else 3
    assert stream.usage() == Usage(prompt_tokens=prompt, completion_tokens=6, total_tokens=prompt + 6)


def test_of_a_stream_of_tokens_the_usage_is_taken_out_as_well() -> None:
    events = events_of((ANSWERS / "generate_usage.sse").read_bytes())
    *contents, usage, done = events
    assert b'"choices":[]' in usage
    for parts in (events, cut(b"".join(events), 61)):
        out, stream = passed(parts, chat=False)
        assert out == b"".join([*contents, done])
        assert stream.usage() == Usage(prompt_tokens=4, completion_tokens=3, total_tokens=7)


def test_every_whole_event_passes_at_once_but_for_the_one_that_ends_the_answer() -> None:
    events = events_of((ANSWERS / "chat_usage.sse").read_bytes())
    stream = StreamFilter(ChunkStream(chat=True))
    *contents, end, usage, done = events
    assert [stream.feed(event) for event in contents] == contents
    assert stream.feed(end) == b""
    assert stream.feed(usage) == marked(end)
    assert stream.feed(done) == done
    assert stream.finish() == b""


def test_a_server_that_sends_usage_to_every_client_is_not_filtered() -> None:
    stream = (ANSWERS / "chat_continuous.sse").read_bytes()
    for size in (1, 100, len(stream)):
        out, reader = passed(cut(stream, size))
        assert out == stream
        assert reader.usage() == Usage(prompt_tokens=8, completion_tokens=6, total_tokens=14)


def test_usage_null_in_every_event_takes_nothing_away() -> None:
    parts = [chunk("a", usage=None), chunk("", "stop", usage=None), usage_event(None), DONE]
    assert passed(parts)[0] == b"".join([*parts[:2], DONE])


def test_a_server_without_a_fingerprint_gets_none() -> None:
    parts = [chunk("a"), chunk("", "stop"), usage_event(None), DONE]
    assert passed(parts)[0] == b"".join([*parts[:2], DONE])


def test_a_fingerprint_of_the_operators_own_is_spelt_as_vllm_spells_it() -> None:
    fingerprint = 'é"\\ \U0001f600'
    out, _ = passed([chunk("", "stop"), usage_event(fingerprint)])
    assert out == marked(chunk("", "stop"), json.dumps(fingerprint, ensure_ascii=False).encode())


def test_choices_that_end_together_all_get_the_fingerprint() -> None:
    ends = [chunk("", "stop", 0), chunk("", "length", 1)]
    assert passed([*ends, usage_event(), DONE])[0] == b"".join([*map(marked, ends), DONE])


def test_a_choice_that_ends_early_waits_for_one_event_and_gets_the_last_fingerprint() -> None:
    known = Fingerprint()
    parts = [chunk("", "stop", 0), chunk("b", None, 1), chunk("", "stop", 1), usage_event(), DONE]
    first, _ = passed(parts, fingerprint=known)
    assert first == b"".join([parts[0], parts[1], marked(parts[2]), DONE])
    assert known.value == b'"vllm-0.32.0-13f59189"'
    second, _ = passed(parts, fingerprint=known)
    assert second == b"".join([marked(parts[0]), parts[1], marked(parts[2]), DONE])


def test_only_one_event_is_taken_out() -> None:
    parts = [chunk("", "stop"), usage_event(), usage_event(), DONE]
    assert passed(parts)[0] == marked(parts[0]) + usage_event() + DONE


def test_an_event_with_usage_and_an_answer_is_no_usage_event() -> None:
    parts = [chunk("a"), usage_event(choices=[{"index": 0}]), DONE]
    assert passed(parts)[0] == b"".join(parts)


@pytest.mark.parametrize("end", [0, 1, 2, 3, 4])
def test_a_stream_that_breaks_off_loses_no_byte_that_came(end: int) -> None:
    events = [chunk("a"), chunk("b"), chunk("", "stop"), usage_event()]
    stream = b"".join(events[:end]) + (events[end][:-40] if end < len(events) else b"")
    for size in (1, len(stream)):
        out, reader = passed(cut(stream, size))
        if end < 4:
            assert out == stream
            assert reader.usage() is None
            assert reader.estimate(5).estimated
        else:
            assert out == b"".join(events[:2]) + marked(events[2])


def test_an_error_in_the_stream_passes() -> None:
    parts = [chunk("a"), b'data: {"error":{"message":"\\"usage\\"","code":500}}\n\n', DONE]
    for size in (None, 1):
        assert passed(parts if size is None else cut(b"".join(parts), 1))[0] == b"".join(parts)


def test_keep_alive_comments_pass() -> None:
    parts = [b": keep-alive\n\n", chunk("a"), b": keep-alive\n\n", chunk("", "stop"), usage_event(), DONE]
    out, reader = passed(parts)
    assert out == b"".join([*parts[:3], marked(parts[3]), DONE])
    assert reader.chunks == 2


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_a_stream_with_other_line_ends_is_filtered_as_well(end: bytes) -> None:
    stop = chunk("", "stop").replace(b"\n", end)
    parts = [chunk("a").replace(b"\n", end), stop, usage_event().replace(b"\n", end), DONE.replace(b"\n", end)]
    marked_stop = stop.replace(b"}" + end, b',"system_fingerprint":"vllm-0.32.0-13f59189"}' + end)
    for size in (1, 20, 10_000):
        out, reader = passed(cut(b"".join(parts), size))
        assert out == parts[0] + marked_stop + parts[3]
        assert reader.usage() == Usage(prompt_tokens=8, completion_tokens=6, total_tokens=14)


def test_of_a_long_event_little_is_held_and_it_gets_its_fingerprint() -> None:
    long = chunk("x" * (5 * MAX_HELD), "stop")
    stream = StreamFilter(ChunkStream(chat=True))
    held = 0
    out = b""
    fed = 0
    for part in cut(long, 1000):
        out += stream.feed(part)
        fed += len(part)
        held = max(held, fed - len(out))
    assert held <= MAX_HELD + 1000
    out += stream.feed(usage_event()) + stream.feed(DONE) + stream.finish()
    assert out == marked(long) + DONE


def test_a_long_event_that_ends_nothing_passes_whole() -> None:
    parts = [chunk("x" * (3 * MAX_HELD)), chunk("", "stop"), usage_event(), DONE]
    for size in (1, 999, MAX_HELD):
        out, _ = passed(cut(b"".join(parts), size))
        assert out == parts[0] + marked(parts[1]) + DONE


def test_held_ends_of_many_choices_are_bounded() -> None:
    end = chunk("y" * 1000, "stop")
    stream = StreamFilter(ChunkStream(chat=True))
    fed = out = 0
    for _ in range(300):
        fed += len(end)
        out += len(stream.feed(end))
        assert fed - out <= MAX_HELD_ENDS + len(end)


@PATIENT
@given(st.lists(st.tuples(TEXTS, st.booleans()), max_size=6), st.booleans(), st.data())
def test_any_pieces_give_the_client_the_same(texts: list[tuple[str, bool]], named: bool, data: st.DataObject) -> None:
    events = [chunk(text, "stop" if ends else None) for text, ends in texts]
    fingerprint = "fp" if named else None
    asked = b"".join([*events, usage_event(fingerprint), DONE])
    out, reader = passed(data.draw(pieces(asked)))
    last = len(events)
    while last and texts[last - 1][1]:
        last -= 1
    # those that end an answer right before the usage are marked; of those before, nothing was known yet
    ends = [marked(event, b'"fp"') if named else event for event in events[last:]]
    assert out == b"".join([*events[:last], *ends, DONE])
    assert reader.usage() == Usage(prompt_tokens=8, completion_tokens=6, total_tokens=14)
    assert reader.chunks == len(events)


@PATIENT
@given(st.binary(max_size=400), st.data())
def test_bytes_that_are_no_stream_pass_unchanged(noise: bytes, data: st.DataObject) -> None:
    assert passed(data.draw(pieces(noise)))[0] == noise
