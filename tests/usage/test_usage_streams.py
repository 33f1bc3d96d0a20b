"""A stream is counted correctly in any segmentation, and whatever text a user makes the model generate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.usage.usage_texts import COUNTS, NESTED, PATIENT, TEXTS, pieces
from tests.usage_reading import reader_for
from twisted_vllm.usage.readers.document import MAX_WHOLE, Shape
from twisted_vllm.usage.readers.sse import MAX_LINE, EventParser
from twisted_vllm.usage.readers.streams import ChunkStream, CohereStream, MessageStream, ResponseStream
from twisted_vllm.usage.records import Usage

ANSWERS = Path(__file__).parent / "answers"
SSE = b"text/event-stream"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def events_of(parts: list[bytes]) -> list[tuple[bytes, bytes]]:
    parser = EventParser(Shape((b"usage",)))
    return [event for part in parts for event in parser.feed(part)]


def reader_of(route: str, parts: list[bytes]) -> ChunkStream | ResponseStream | MessageStream | CohereStream:
    reader = reader_for(route, SSE)
    assert isinstance(reader, (ChunkStream, ResponseStream, MessageStream, CohereStream))
    for part in parts:
        reader.feed(part)
    return reader


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_are_split_as_the_standard_says(end: bytes, size: int) -> None:
    stream = end.join(
        [
            b"\xef\xbb\xbfdata: first",
            b"",
            b": a comment, data: not this",
            b"",
            b"event: two",
            b"id: 7",
            b"data",
            b"data:second",
            b"data:  third",
            b"retry: 1",
            b"",
            b"event: without data",
            b"",
            b"data: last",
            b"",
            b"",
            b"data: never ended",
        ]
    )
    parts = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert events_of(parts) == [(b"", b"first"), (b"two", b"\nsecond\n third"), (b"", b"last")]


def test_a_line_too_long_to_be_kept_is_scanned() -> None:
    long = b'{"pad":"' + b"x" * (2 * MAX_LINE) + b'","usage":{"prompt_tokens":4}}'
    stream = b"data: " + long + b"\n\n: " + b"y" * (2 * MAX_LINE) + b"\n\ndata: {}\n\n"
    for size in (1000, len(stream)):
        parts = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert events_of(parts) == [(b"", b'{"usage":{"prompt_tokens":4}}'), (b"", b"{}")]


@pytest.mark.parametrize(("name", "route"), [("chat", CHAT), ("completions", COMPLETIONS)])
def test_a_stream_without_usage_is_counted_by_its_chunks(name: str, route: str) -> None:
    stream = (ANSWERS / f"{name}.sse").read_bytes()
    for size in (1, 100, len(stream)):
        reader = reader_of(route, [stream[at : at + size] for at in range(0, len(stream), size)])
        assert reader.usage() is None
        assert reader.estimate(9) == Usage(prompt_tokens=9, completion_tokens=6, total_tokens=15, estimated=True)


@pytest.mark.parametrize("name", ["chat_usage", "completions_usage"])
def test_a_stream_that_ends_early_is_counted_by_the_chunks_that_came(name: str) -> None:
    events = (ANSWERS / f"{name}.sse").read_bytes().split(b"\n\n")
    route = CHAT if name.startswith("chat") else COMPLETIONS
    lead_in = 1 if route == CHAT else 0
    for tokens in range(7):
        reader = reader_of(route, [event + b"\n\n" for event in events[: tokens + lead_in]])
        assert reader.usage() is None
        assert reader.estimate(9).completion_tokens == tokens
    assert reader_of(route, []).estimate(9).completion_tokens == 0


def test_continuous_usage_makes_a_stream_that_ends_early_exact() -> None:
    events = (ANSWERS / "chat_continuous.sse").read_bytes().split(b"\n\n")
    for tokens in range(7):
        reader = reader_of(CHAT, [event + b"\n\n" for event in events[: tokens + 1]])
        assert reader.usage() == Usage(prompt_tokens=8, completion_tokens=tokens, total_tokens=8 + tokens)


def chunk(index: int, tokens: int, prompt: int = 8) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": index, "text": "a"}], "usage": usage}).encode()


def test_continuous_usage_of_several_choices_is_added_up() -> None:
    parts = [chunk(0, 1), chunk(1, 1), chunk(0, 2), chunk(1, 2), chunk(0, 3)]
    assert reader_of(CHAT, parts).usage() == Usage(prompt_tokens=8, completion_tokens=5, total_tokens=13)
    # the answers of completions may be to several prompts, of which each event counts one
    several = reader_of(COMPLETIONS, parts).usage()
    assert several is not None and several.estimated


def test_usage_so_far_of_a_stream_that_ends_early_counts_for_the_estimate() -> None:
    parts = [chunk(0, 1), chunk(1, 1), chunk(0, 12), chunk(1, 12)]
    chat, several = reader_of(CHAT, parts), reader_of(COMPLETIONS, parts)
    assert (chat.reported, several.reported) == (24, 24)
    # events teach how many tokens an event has
    assert chat.estimate(99, 2) == Usage(prompt_tokens=8, completion_tokens=4, total_tokens=12, estimated=True)
    # one of two choices may have one of two prompts
    assert several.estimate(99, 2).prompt_tokens == 99
    assert several.estimate(9, 1).prompt_tokens == 8
    end = b'data: {"choices":[],"usage":{"prompt_tokens":16,"completion_tokens":30,"total_tokens":46}}\n\n'
    whole = reader_of(CHAT, [*parts, end])
    assert whole.reported is None
    assert whole.usage() == Usage(prompt_tokens=16, completion_tokens=30, total_tokens=46)
    assert reader_of(CHAT, []).reported is None


def test_usage_null_is_no_usage() -> None:
    reader = reader_of(CHAT, [b'data: {"choices":[{"index":0}],"usage":null}\n\n'] * 3)
    assert reader.usage() is None
    assert reader.chunks == 3


def test_an_error_in_a_stream_is_no_token() -> None:
    error = b'data: {"error":{"message":"EngineCore encountered an issue","type":"InternalServerError","code":500}}\n\n'
    first = (ANSWERS / "completions.sse").read_bytes().split(b"\n\n")[0] + b"\n\n"
    for parts in ([first, error, b"data: [DONE]\n\n"], [first + error + b"data: [DONE]\n\n"]):
        reader = reader_of(COMPLETIONS, parts)
        assert reader.usage() is None
        assert reader.estimate(3).completion_tokens == 1


@pytest.mark.parametrize("whole", [True, False])
def test_responses_and_messages_count_their_deltas_where_the_end_is_missing(whole: bool) -> None:
    for name, route, prompt in (("responses", "/v1/responses", 9), ("messages", "/v1/messages", 8)):
        stream = (ANSWERS / f"{name}.sse").read_bytes()
        deltas = stream.count(b".delta\n") + stream.count(b"content_block_delta\n")
        assert deltas
        cut = stream[: stream.index(b"event: response.completed" if name == "responses" else b"event: message_delta")]
        parts = [event + b"\n\n" for event in cut.split(b"\n\n")[:-1]] if whole else [cut]
        reader = reader_of(route, parts)
        assert reader.usage() is None
        # the prompt of a message is vLLM's own count
        estimate = reader.estimate(9)
        assert (estimate.prompt_tokens, estimate.completion_tokens, estimate.estimated) == (prompt, deltas, True)


def test_a_message_may_name_its_prompt_at_the_start_alone() -> None:
    stream = (
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":5,'
        b'"cache_read_input_tokens":3,"output_tokens":0}}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":4}}\n\n'
    )
    assert reader_of("/v1/messages", [stream]).usage() == Usage(
        prompt_tokens=8, cached_tokens=3, completion_tokens=4, total_tokens=12
    )


def test_cohere_names_usage_in_its_last_event() -> None:
    stream = (
        b'data: {"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"a"}}}}\n\n'
        b'data: {"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":{"billed_units":{"input_tokens":9,'
        b'"output_tokens":9},"tokens":{"input_tokens":7,"output_tokens":2},"cached_tokens":1}}}\n\ndata: [DONE]\n\n'
    )
    reader = reader_of("/cohere/v2/chat", [stream])
    assert reader.usage() == Usage(prompt_tokens=7, cached_tokens=1, completion_tokens=2, total_tokens=9)
    assert reader.chunks == 1


def test_a_stream_of_cohere_that_ends_early_is_counted_by_its_deltas() -> None:
    events = (ANSWERS / "cohere_chat.sse").read_bytes().split(b"\n\n")
    end = next(number for number, event in enumerate(events) if b'"message-end"' in event)
    for number in range(end + 1):
        reader = reader_of("/cohere/v2/chat", [event + b"\n\n" for event in events[:number]])
        assert reader.usage() is None
        deltas = sum(b'"content-delta"' in event for event in events[:number])
        assert reader.estimate(9).completion_tokens == deltas
    assert deltas > 0


def test_a_transcription_without_usage_is_counted_by_its_chunks_and_its_prompt_is_not_guessed() -> None:
    reader = reader_of("/v1/audio/transcriptions", [(ANSWERS / "transcription.sse").read_bytes()])
    assert reader.usage() is None
    assert reader.estimate(26_000) == Usage(completion_tokens=4, total_tokens=4, estimated=True)


def test_a_last_event_of_any_size_is_read() -> None:
    response: dict[str, Any] = {"output": ["x" * MAX_WHOLE], "metadata": {"usage": {"input_tokens": 1}}}
    response["usage"] = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    event = b"event: response.completed\ndata: %b\n\n" % json.dumps({"response": response}).encode()
    for size in (1000, len(event)):
        reader = reader_of("/v1/responses", [event[at : at + size] for at in range(0, len(event), size)])
        assert reader.usage() == Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)


ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def framed(data: bytes, draw: Callable[[st.SearchStrategy[Any]], Any], name: bytes = b"") -> bytes:
    """Frame an event in one of the ways that the standard allows."""
    end: bytes = draw(ENDS)
    field = b"data:" if draw(st.booleans()) else b"data: "
    lines = [b"event: " + name] if name else []
    # JSON may be spread over several lines between its tokens
    lines += [field + line for line in ([data[:1], data[1:]] if draw(st.booleans()) else [data])]
    if draw(st.booleans()):
        lines.insert(draw(st.integers(0, len(lines))), b": " + json.dumps(draw(TEXTS)).encode())
    return b"".join(line + end for line in lines) + end


@PATIENT
@given(st.lists(TEXTS, max_size=5), COUNTS, COUNTS, NESTED, st.data())
def test_no_text_of_a_user_changes_what_a_chat_counts(
    texts: list[str], prompt: int, completion: int, arguments: Any, data: st.DataObject
) -> None:
    stream = b""
    for text in texts:
        delta = {"content": text, "tool_calls": [{"function": {"name": text, "arguments": json.dumps(arguments)}}]}
        body = {"id": "a", "choices": [{"index": 0, "delta": delta, "logprobs": {"top_logprobs": [{text: -1.5}]}}]}
        ascii_only = data.draw(st.booleans())
        stream += framed(json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "replace"), data.draw)
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    last = framed(json.dumps({"choices": [], "usage": usage}).encode(), data.draw)

    without = reader_of(CHAT, data.draw(pieces(stream)))
    assert without.usage() is None
    assert without.estimate(7).completion_tokens == len(texts)

    reader = reader_of(CHAT, data.draw(pieces(stream + last + b"data: [DONE]\n\n")))
    assert reader.usage() == Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


@PATIENT
@given(st.lists(TEXTS, max_size=4), COUNTS, COUNTS, NESTED, st.data())
def test_no_text_of_a_user_changes_what_a_response_counts(
    texts: list[str], prompt: int, completion: int, theirs: Any, data: st.DataObject
) -> None:
    stream = b""
    for text in texts:
        name = b"response.output_text.delta"
        stream += framed(json.dumps({"delta": text, "type": name.decode()}).encode(), data.draw, name)
    usage = {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}
    response = {"output": texts, "metadata": theirs, "tools": [{"parameters": theirs}], "usage": usage}
    end = json.dumps({"response": response, "type": "response.completed"}).encode()
    stream += framed(end, data.draw, b"response.completed")
    reader = reader_of("/v1/responses", data.draw(pieces(stream)))
    assert reader.usage() == Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
    assert reader.chunks == len(texts)


@PATIENT
@given(st.binary(max_size=300), st.data())
def test_bytes_that_are_no_stream_do_no_harm(noise: bytes, data: st.DataObject) -> None:
    for route in (CHAT, "/v1/responses", "/v1/messages", "/cohere/v2/chat"):
        reader_of(route, data.draw(pieces(b"data: {" + noise + b"\n\nevent: message_delta\ndata: " + noise))).usage()
