"""An error that a server reports in a stream is noticed, and what passed before it is counted.

``FAILED`` has the bytes that vLLM 0.32 sends; its Responses cut the connection instead.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.usage.usage_texts import NESTED, PATIENT, TEXTS, pieces
from tests.usage_reading import reader_for
from twisted_vllm.usage.readers.registry import UsageReader
from twisted_vllm.usage.readers.stream_filter import StreamFilter
from twisted_vllm.usage.readers.streams import ChunkStream
from twisted_vllm.usage.records import Usage

ANSWERS = Path(__file__).parents[1] / "answers"
SSE = b"text/event-stream"
CHAT, COMPLETIONS, TRANSCRIPTIONS = "/v1/chat/completions", "/v1/completions", "/v1/audio/transcriptions"
GENERATE, RESPONSES, MESSAGES, COHERE = "/inference/v1/generate", "/v1/responses", "/v1/messages", "/cohere/v2/chat"
DONE = b"data: [DONE]\n\n"
ERROR = (
    b'data: {"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, "code": 500}}'
    b"\n\n"
)
MESSAGES_ERROR = b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"boom"}}\n\n'
COHERE_ERROR = b'data: {"type": "message-end", "delta": {"error": "boom", "finish_reason": "ERROR"}}\n\n'
USED = {"prompt_tokens": 8, "completion_tokens": 6, "total_tokens": 14}
#: by route: a recorded stream, the events of it that came, the tokens in them, and how vLLM says that it failed
FAILED: dict[str, tuple[str, int, int, bytes]] = {
    CHAT: ("chat", 4, 3, ERROR + DONE),
    COMPLETIONS: ("completions", 3, 3, ERROR + DONE),
    TRANSCRIPTIONS: ("transcription", 2, 2, ERROR + DONE),
    GENERATE: ("generate_usage", 2, 2, ERROR + DONE),
    MESSAGES: ("messages", 4, 2, MESSAGES_ERROR),
    COHERE: ("cohere_chat", 4, 2, COHERE_ERROR + DONE),
}


def event(body: Any, name: str = "") -> bytes:
    return f"event: {name}\n".encode() * bool(name) + b"data: %b\n\n" % json.dumps(body).encode()


def read(route: str, stream: bytes, size: int | None = None) -> UsageReader:
    reader = reader_for(route, SSE)
    for at in range(0, len(stream), size or len(stream)):
        reader.feed(stream[at : at + (size or len(stream))])
    return reader


def recorded(name: str, count: int) -> bytes:
    """Return the first events of a recorded stream."""
    return b"".join(event + b"\n\n" for event in (ANSWERS / f"{name}.sse").read_bytes().split(b"\n\n")[:count])


@pytest.mark.parametrize("route", FAILED)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_error_as_vllm_reports_it_ends_the_count(route: str, end: bytes) -> None:
    name, events, tokens, error = FAILED[route]
    stream = (recorded(name, events) + error).replace(b"\n", end)
    for size in (1, 60, None):
        reader = read(route, stream, size)
        assert reader.failed
        assert reader.usage() is None
        estimate = reader.estimate(9)
        assert (estimate.completion_tokens, estimate.estimated) == (tokens, True)
        # vLLM counts the prompt of a message at its start
        assert estimate.prompt_tokens == {MESSAGES: 8, TRANSCRIPTIONS: 0}.get(route, 9)


@pytest.mark.parametrize("route", FAILED)
def test_an_error_may_come_first(route: str) -> None:
    # Cohere's then has no event at all
    stream = DONE if route == COHERE else FAILED[route][3]
    for size in (1, None):
        reader = read(route, stream, size)
        assert reader.failed
        assert reader.estimate(9).completion_tokens == 0


@pytest.mark.parametrize("name", [path.stem for path in sorted(ANSWERS.glob("*.sse"))])
def test_no_recorded_stream_is_an_error(name: str) -> None:
    route = next(route for start, route in ROUTES.items() if name.startswith(start))
    assert not read(route, (ANSWERS / f"{name}.sse").read_bytes()).failed


ROUTES = {
    "chat": CHAT,
    "completions": COMPLETIONS,
    "transcription": TRANSCRIPTIONS,
    "generate": GENERATE,
    "responses": RESPONSES,
    "messages": MESSAGES,
    "cohere": COHERE,
}


def test_one_token_before_the_error_is_one_token() -> None:
    token = event({"choices": [{"index": 0, "delta": {"content": "a"}}]})
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    for before, tokens in ((token, 1), (role + token, 1), (role, 0), (role + role + token + token, 2)):
        reader = read(CHAT, before + ERROR + DONE)
        assert reader.failed
        assert reader.estimate(5) == Usage(5, 0, tokens, total_tokens=5 + tokens, estimated=True)


@pytest.mark.parametrize(
    ("delta", "is_token"),
    [
        ({"role": "assistant"}, False),
        ({"role": "assistant", "content": None, "tool_calls": []}, False),
        ({"role": "assistant", "content": "a"}, True),
        ({"role": "assistant", "content": "", "reasoning": "a"}, True),
        ({"role": "assistant", "tool_calls": [{"index": 0}]}, True),
        ({"content": ""}, True),
        ({}, True),
    ],
)
def test_only_a_chunk_with_a_role_alone_is_no_token(delta: dict[str, Any], is_token: bool) -> None:
    stream = event({"choices": [{"index": 0, "delta": delta}]})
    for size in (1, None):
        assert read(CHAT, stream, size).estimate(0).completion_tokens == is_token
    # completions have no roles
    assert read(COMPLETIONS, stream).estimate(0).completion_tokens == 1


def test_usage_that_the_server_reported_before_the_error_counts() -> None:
    chunk = event({"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": USED})
    for before in (chunk, event({"choices": [], "usage": USED})):
        reader = read(CHAT, before + ERROR + DONE)
        assert reader.failed
        assert reader.usage() == Usage(8, 0, 6, total_tokens=14)


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, TRANSCRIPTIONS, GENERATE, RESPONSES, MESSAGES, COHERE])
@pytest.mark.parametrize(
    "error",
    [
        b'data:{"error":{"message":"no"}}\n\n',
        b'data:  { "error" : "no" }\n\n',
        b'data: {\ndata: "error"\ndata: : {"code": 5}}\n\n',
        b'data: {"id":"c","choices":[{"index":0,"finish_reason":"error"}],"error":{"code":502}}\n\n',
        b'data: {"usage":{"prompt_tokens":1},"error":{"code":502}}\n\n',
        b'event: error\ndata: {"message":"no"}\n\n',
        b"event:error\ndata: no\n\n",
        b'data: {"type" : "error"}\n\n',
        b'event: error\ndata: {"type":"error","code":"server_error","message":"no","sequence_number":3}\n\n',
    ],
)
def test_other_spellings_of_an_error_are_known(route: str, error: bytes) -> None:
    for size in (1, None):
        reader = read(route, error, size)
        assert reader.failed
        assert reader.estimate(0).completion_tokens == 0


def test_a_response_that_failed_is_an_error_and_one_that_is_incomplete_is_none() -> None:
    usage = {"input_tokens": 8, "output_tokens": 6, "total_tokens": 14}
    for kind, failed in (("failed", True), ("incomplete", False), ("completed", False)):
        body = {"type": f"response.{kind}", "response": {"error": None, "usage": usage}}
        for stream in (event(body, f"response.{kind}"), event(body)):
            reader = read(RESPONSES, stream)
            assert reader.failed is failed
            assert reader.usage() == Usage(8, 0, 6, total_tokens=14)


def test_an_error_in_gzip_is_known() -> None:
    reader = reader_for(CHAT, SSE, b"gzip")
    reader.feed(gzip.compress(ERROR + DONE))
    assert reader.failed


@pytest.mark.parametrize("nothing", [None, False, "", {}, []])
def test_an_error_that_says_nothing_is_none(nothing: Any) -> None:
    body = {"choices": [{"index": 0, "delta": {"content": "a"}}], "error": nothing}
    for route in (CHAT, COMPLETIONS):
        reader = read(route, event(body) * 2)
        assert not reader.failed
        assert reader.estimate(0).completion_tokens == 2


def test_an_error_reaches_the_client_as_it_came() -> None:
    stream = event({"choices": [{"index": 0, "delta": {"content": "a"}}]}) + ERROR + DONE
    for size in (1, len(stream)):
        reader = ChunkStream(chat=True)
        feed = StreamFilter(reader).feed
        assert b"".join(feed(stream[at : at + size]) for at in range(0, len(stream), size)) == stream
        assert reader.failed


TOKENS = TEXTS | st.sampled_from(["error", '"error"', '{"error":{"message":"x"}}', '\n\ndata: {"error":1}\n\n'])


@PATIENT
@given(TOKENS, NESTED | TOKENS, st.booleans(), st.data())
def test_no_text_of_a_model_or_a_user_is_an_error(text: str, theirs: Any, is_ascii: bool, data: st.DataObject) -> None:
    delta = {"content": text, "tool_calls": [{"function": {"name": text, "arguments": json.dumps(theirs)}}]}
    logprobs = {"content": [{"token": text}], "top_logprobs": [{text: -1.5, "error": -1.0}]}
    response = {"error": None, "metadata": {"error": theirs}, "output": [{"type": "error", "content": theirs}]}
    bodies = {
        CHAT: ["", {"choices": [{"index": 0, "delta": delta, "logprobs": logprobs}]}],
        COMPLETIONS: ["", {"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": text}]}],
        RESPONSES: ["response.completed", {"type": "response.completed", "response": response}],
        MESSAGES: ["content_block_start", {"type": "content_block_start", "content_block": {"error": theirs}}],
        COHERE: ["", {"type": "citation-start", "delta": {"message": {"citations": {"error": theirs, "text": text}}}}],
    }
    for route, (name, body) in bodies.items():
        lines = f"event: {name}\n" * bool(name)
        stream = f"{lines}data: {json.dumps(body, ensure_ascii=is_ascii)}\n\n".encode("utf-8", "replace")
        reader = reader_for(route, SSE)
        for part in data.draw(pieces(stream)):
            reader.feed(part)
        assert not reader.failed


#: deltas of text, reasoning and tool calls, as vLLM 0.32 names them
DELTAS = {
    RESPONSES: [
        *("response.output_text.delta", "response.reasoning_text.delta", "response.function_call_arguments.delta"),
        *("response.custom_tool_call_input.delta", "response.mcp_call_arguments.delta"),
        "response.code_interpreter_call_code.delta",
    ],
    MESSAGES: ["text_delta", "thinking_delta", "input_json_delta"],
    COHERE: ["content-delta", "tool-plan-delta", "tool-call-delta"],
}


@pytest.mark.parametrize(("route", "kind"), [(route, kind) for route, kinds in DELTAS.items() for kind in kinds])
@pytest.mark.parametrize("named", [True, False])
def test_a_stream_that_is_cut_is_counted_by_its_deltas_of_any_kind(route: str, kind: str, named: bool) -> None:
    bodies = {
        RESPONSES: (kind, {"type": kind, "delta": "a", "output_index": 0}),
        MESSAGES: ("content_block_delta", {"type": "content_block_delta", "delta": {"type": kind}, "index": 0}),
        COHERE: ("", {"type": kind, "index": 0, "delta": {"message": {"tool_calls": {"function": {}}}}}),
    }
    name, body = bodies[route]
    start = event({"type": "response.created", "response": {"usage": None}}, "response.created")
    stream = start * (route == RESPONSES) + event(body, name if named else "") * 7
    for size in (1, 90, None):
        reader = read(route, stream, size)
        assert reader.usage() is None
        assert not reader.failed
        assert reader.estimate(5) == Usage(5, 0, 7, total_tokens=12, estimated=True)
