"""Answers are put together of bodies and streams as vLLM writes them, however they are cut into pieces."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.api_routes import ROUTES, ModelPlace, RouteClass, UsageFormat
from twisted_vllm.http.headers import HeaderList, ResponseHead
from twisted_vllm.observability.contents.answer import MOST_CALLS, MOST_CHOICES
from twisted_vllm.observability.contents.folding import ANY, CHUNKS, COHERE, MESSAGES, RESPONSES, RESULT, Format
from twisted_vllm.observability.contents.gathered import BATCH, Caps, Gathered, Memory
from twisted_vllm.observability.contents.routes import FORMATS

ANSWERS = Path(__file__).parents[2] / "usage" / "answers"
EVENTS, JSON = "text/event-stream; charset=utf-8", "application/json"


def gathered(
    format: Format,
    pieces: list[bytes],
    kind: str = EVENTS,
    *,
    status: int = 200,
    most: int = 100_000,
    encoding: str = "",
    total: int = 10_000_000,
) -> Gathered:
    """Return what was gathered of an answer in pieces."""
    found = Gathered("full", format, Caps(1000, most), Memory(total))
    headers: HeaderList = [(b"content-type", kind.encode()), (b"content-encoding", encoding.encode())]
    found.start(ResponseHead(status, b"OK", headers))
    for piece in pieces:
        found.feed(piece)
    return found


def report(format: Format, data: bytes, kind: str = EVENTS, *, size: int = 0, **options: Any) -> Any:
    """Return the answer, fed in pieces of a size; 0 feeds it whole."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)] if size else [data]
    return gathered(format, pieces, kind, **options).answer().report()


def stream(*events: object, named: bool = False, end: bool = True) -> bytes:
    """Return a stream of events as vLLM spells it."""
    out = b""
    for event in events:
        name = b"event: %b\n" % str(event["type"]).encode() if named and isinstance(event, dict) else b""
        out += name + b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
    return out + (b"data: [DONE]\n\n" if end else b"")


def delta(**values: object) -> dict[str, object]:
    reason = values.pop("finish_reason", None)
    index = values.pop("index", 0)
    return {"choices": [{"index": index, "delta": values, "logprobs": None, "finish_reason": reason}]}


TOOLS = stream(
    delta(role="assistant", content=""),
    delta(reasoning="Let me "),
    delta(reasoning_content="think."),
    delta(tool_calls=[{"index": 0, "id": "call-1", "type": "function", "function": {"name": "f", "arguments": ""}}]),
    delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city": '}}]),
    delta(tool_calls=[{"index": 1, "id": "call-2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]),
    delta(tool_calls=[{"index": 0, "function": {"arguments": '"Köln"}'}}]),
    delta(finish_reason="tool_calls"),
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
)
CALLED = {
    "text": "",
    "reasoning": "Let me think.",
    "tool_calls": [
        {"id": "call-1", "type": "function", "name": "f", "arguments": '{"city": "Köln"}'},
        {"id": "call-2", "type": "function", "name": "g", "arguments": "{}"},
    ],
    "finish_reasons": ["tool_calls"],
}


@pytest.mark.parametrize("size", [0, 1, 7, 100])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
def test_a_chat_with_tools_and_reasoning(size: int, ends: bytes) -> None:
    assert report(CHUNKS, TOOLS.replace(b"\n", ends), size=size) == CALLED


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_the_pieces_do_not_matter(sizes: list[int]) -> None:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(TOOLS[at : at + size])
        at += size
    assert gathered(CHUNKS, [*pieces, TOOLS[at:]]).answer().report() == CALLED


def test_several_choices_are_told_apart() -> None:
    data = stream(
        delta(index=1, content="b"),
        delta(index=0, content="a"),
        delta(index=1, content="B", finish_reason="length"),
        delta(index=0, refusal="no", finish_reason="stop"),
    )
    assert report(CHUNKS, data) == {
        "text": "a",
        "refusal": "no",
        "finish_reasons": ["stop", "length"],
        "choices": [
            {"index": 0, "text": "a", "refusal": "no", "finish_reason": "stop"},
            {"index": 1, "text": "bB", "finish_reason": "length"},
        ],
    }


def test_events_that_are_no_json_are_passed_over() -> None:
    odd = b': ping\n\ndata: {broken\n\nevent: x\ndata: {"choices":\ndata: [{"text": "a"}]}\n\nretry: 1\n\n'
    found = gathered(CHUNKS, [odd + stream(delta(content="b"))])
    assert found.answer().report() == {"text": "ab", "finish_reasons": [""]}
    assert found.truncated


def test_a_stream_that_is_cut_is_kept_as_far_as_it_came() -> None:
    found = report(CHUNKS, stream(delta(content="a"), delta(content="b"), end=False)[:-4])
    assert found == {"text": "a", "finish_reasons": [""]}


def test_an_error_in_a_stream_is_kept() -> None:
    data = stream(delta(content="a"), {"error": {"message": "out of memory", "code": 500}})
    assert report(CHUNKS, data)["error"] == {"message": "out of memory", "code": 500}


RESPONSE_EVENTS = stream(
    {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}},
    {"type": "response.reasoning_text.delta", "delta": "Hm.", "output_index": 0},
    {"type": "response.output_text.delta", "delta": "Hel", "output_index": 1, "content_index": 0},
    {"type": "response.output_text.delta", "delta": "lo", "output_index": 1, "content_index": 0},
    {
        "type": "response.output_item.added",
        "output_index": 2,
        "item": {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": ""},
    },
    {"type": "response.function_call_arguments.delta", "delta": '{"a":', "output_index": 2, "item_id": "fc_1"},
    {"type": "response.function_call_arguments.delta", "delta": "1}", "output_index": 2, "item_id": "fc_1"},
    {"type": "response.function_call_arguments.done", "arguments": '{"a":1}', "output_index": 2},
    {"type": "response.completed", "response": {"status": "completed", "output": [], "error": None}},
    named=True,
    end=False,
)
RESPONDED = {
    "text": "Hello",
    "reasoning": "Hm.",
    "tool_calls": [{"id": "call_1", "type": "function_call", "name": "f", "arguments": '{"a":1}'}],
    "finish_reasons": ["completed"],
}


@pytest.mark.parametrize("size", [0, 1, 64])
def test_events_of_responses(size: int) -> None:
    assert report(RESPONSES, RESPONSE_EVENTS, size=size) == RESPONDED


def test_a_whole_response() -> None:
    body = {
        "status": "completed",
        "error": None,
        "output": [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}], "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]},
            {"type": "function_call", "call_id": "call_1", "id": "fc_1", "name": "f", "arguments": '{"a":1}'},
        ],
    }
    assert report(RESPONSES, json.dumps(body).encode(), JSON) == RESPONDED


def test_an_incomplete_response_says_why() -> None:
    ended = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert report(RESPONSES, stream({"type": "response.incomplete", "response": ended}))["finish_reasons"] == [
        "max_output_tokens"
    ]


MESSAGE_EVENTS = stream(
    {"type": "message_start", "message": {"role": "assistant", "content": [], "usage": {"input_tokens": 8}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hi"}},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
    },
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a":'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}},
    {"type": "message_stop"},
    named=True,
    end=False,
)
MESSAGE = {
    "text": "Hi",
    "reasoning": "Hm.",
    "tool_calls": [{"id": "t1", "type": "function", "name": "f", "arguments": '{"a":1}'}],
    "finish_reasons": ["tool_use"],
}


@pytest.mark.parametrize("size", [0, 1, 50])
def test_events_of_anthropic_s_messages(size: int) -> None:
    assert report(MESSAGES, MESSAGE_EVENTS, size=size) == MESSAGE


def test_a_whole_message() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm."},
        {"type": "text", "text": "Hi"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
    ]
    assert report(MESSAGES, json.dumps({"content": blocks, "stop_reason": "tool_use"}).encode(), JSON) == MESSAGE


def test_anthropic_s_error_ends_a_message() -> None:
    error = {"type": "overloaded_error", "message": "later"}
    assert report(MESSAGES, stream({"type": "error", "error": error}, named=True))["error"] == error


def test_events_of_cohere_s_chat() -> None:
    data = stream(
        {"type": "message-start", "delta": {"message": {"role": "assistant"}}},
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hi"}}}},
        {
            "type": "tool-call-start",
            "index": 1,
            "delta": {"message": {"tool_calls": {"id": "t", "function": {"name": "f", "arguments": ""}}}},
        },
        {
            "type": "tool-call-delta",
            "index": 1,
            "delta": {"message": {"tool_calls": {"function": {"arguments": "{}"}}}},
        },
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}},
    )
    call = {"id": "t", "type": "function", "name": "f", "arguments": "{}"}
    assert report(COHERE, data) == {"text": "Hi", "tool_calls": [call], "finish_reasons": ["COMPLETE"]}


# what a real vLLM answered, whose model has random weights

#: answers whose text is empty
EMPTY = ("chat.json", "chat_batch.json", "messages.json", "transcription_verbose.json")


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("completions.sse", CHUNKS, {"text"}),
        ("chat.json", CHUNKS, {"text"}),
        ("completions.json", CHUNKS, {"text"}),
        ("messages.sse", MESSAGES, {"text"}),
        ("messages.json", MESSAGES, {"text"}),
        ("responses.sse", RESPONSES, {"text"}),
        ("responses.json", RESPONSES, {"text"}),
        ("cohere_chat.sse", COHERE, {"text"}),
        ("cohere_chat.json", COHERE, {"text"}),
        ("transcription.sse", CHUNKS, {"text"}),
        ("transcription.json", CHUNKS, {"text"}),
        ("transcription_verbose.json", CHUNKS, {"text"}),
        ("chat_batch.json", CHUNKS, {"text"}),
        ("chat.json", ANY, {"text"}),
        ("rerank.json", RESULT, {"result"}),
        ("score.json", RESULT, {"result"}),
        ("score.json", ANY, {"result"}),
        ("classify.json", RESULT, {"result"}),
        ("tokenize.json", RESULT, {"result"}),
        ("embeddings.json", RESULT, {"result"}),
        ("generative_scoring.json", RESULT, {"result"}),
        ("count_tokens.json", RESULT, {"result"}),
    ],
)
def test_real_answers_are_put_together(name: str, format: Format, expected: set[str]) -> None:
    data = (ANSWERS / name).read_bytes()
    kind = EVENTS if name.endswith("sse") else JSON
    whole = report(format, data, kind)
    assert expected <= set(whole)
    assert whole == report(format, data, kind, size=13)
    if expected == {"text"} and name not in EMPTY:
        assert whole["text"]
    assert len(json.dumps(whole)) < 3000


def test_vectors_are_counted_and_not_kept() -> None:
    found = report(RESULT, (ANSWERS / "embeddings.json").read_bytes(), JSON)
    assert "numbers, not kept" in json.dumps(found["result"])


def test_every_route_with_a_prompt_has_a_format() -> None:
    prompts = {
        row.path
        for row in ROUTES
        if (row.generates or row.usage is not UsageFormat.NONE)
        or (row.route_class is RouteClass.INFERENCE and row.model is ModelPlace.BODY)
    }
    assert prompts <= set(FORMATS)
    assert set(FORMATS) <= {row.path for row in ROUTES}


# anything else

MEMBERS = st.sampled_from(
    (
        *("type", "delta", "index", "choices", "message", "content", "text", "tool_calls", "function", "arguments"),
        *(
            "name",
            "id",
            "item",
            "response",
            "status",
            "error",
            "output",
            "content_block",
            "finish_reason",
            "output_index",
        ),
        *(
            "reasoning",
            "summary",
            "finish_reason",
            "partial_json",
            "stop_reason",
            "data",
            "usage",
            "incomplete_details",
            "input",
        ),
    )
)
KINDS = st.sampled_from(
    (
        *("response.output_text.delta", "response.output_item.added", "response.completed", "content_block_delta"),
        *("content_block_start", "message_delta", "text_delta", "tool_use", "function_call", "message", "reasoning"),
        *("message-end", "error", "response.function_call_arguments.delta", "input_json_delta"),
    )
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | KINDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(MEMBERS, inner, max_size=6),
    max_leaves=30,
)


@given(st.sampled_from([CHUNKS, RESPONSES, MESSAGES, COHERE, RESULT, ANY]), st.lists(ODD, max_size=5))
def test_no_answer_whatever_fails(format: Format, values: list[Any]) -> None:
    report(format, stream(*values))
    for value in values:
        body = json.dumps(value).encode()
        report(format, body, JSON)
        report(format, body, JSON, status=500)


@given(
    st.sampled_from([CHUNKS, RESPONSES]),
    st.lists(st.binary(max_size=60) | st.sampled_from([b"data: ", b"\n", b"\r", b"\n\n", b'{"choices":['])),
)
def test_no_bytes_whatever_fail(format: Format, pieces: list[bytes]) -> None:
    for kind, encoding in ((EVENTS, ""), (EVENTS, "gzip"), (JSON, ""), ("text/plain", "")):
        gathered(format, pieces, kind, encoding=encoding).answer().report()


# bounds


def test_no_more_is_kept_than_asked_and_the_end_is_still_known() -> None:
    pieces = [stream(delta(content="ü" * 50), end=False)] * 1000
    found = gathered(CHUNKS, [*pieces, stream(delta(finish_reason="stop"))], most=1001)
    answer = found.answer().report()
    assert answer == {"text": "ü" * 500, "finish_reasons": ["stop"]}
    assert found.truncated


def test_a_flood_of_choices_and_calls_is_bounded() -> None:
    choices = stream(*(delta(index=number, content="x") for number in range(1000)))
    found = gathered(CHUNKS, [choices])
    report = found.answer().report()
    assert report is not None
    assert len(report["choices"]) == MOST_CHOICES
    assert found.truncated
    calls = [{"index": number, "id": "i", "function": {"name": "f"}} for number in range(1000)]
    found = gathered(CHUNKS, [stream(delta(tool_calls=calls))])
    report = found.answer().report()
    assert report is not None
    assert len(report["tool_calls"]) == MOST_CALLS
    assert found.truncated


def test_an_endless_event_is_passed_over_in_bounded_memory() -> None:
    memory = Memory(10_000_000)
    found = Gathered("full", CHUNKS, Caps(1000, 1000), memory)
    found.start(ResponseHead(200, b"OK", [(b"content-type", EVENTS.encode())]))
    most = 0
    for _ in range(2000):
        found.feed(b"x" * 4096)
        most = max(most, memory.used)
    found.feed(b"\n\n" + stream(delta(content="after it")))
    answer = found.answer().report()
    assert answer is not None
    assert answer["text"] == "after it"
    assert found.truncated
    assert most < 2 * BATCH
    found.release()
    assert memory.used == 0


def test_a_large_body_is_kept_in_its_beginning() -> None:
    body = json.dumps({"choices": [{"index": 0, "message": {"content": "x" * 1_000_000}}]}).encode()
    found = gathered(CHUNKS, [body[at : at + 1000] for at in range(0, len(body), 1000)], JSON, most=5000)
    answer = found.answer().report()
    assert answer is not None
    assert answer["text"] == "x" * 5000
    assert found.truncated


def test_all_together_keep_no_more_than_the_total() -> None:
    memory = Memory(100_000)
    every = []
    for _ in range(50):
        found = Gathered("full", CHUNKS, Caps(50_000, 50_000), memory)
        found.start(ResponseHead(200, b"OK", [(b"content-type", EVENTS.encode())]))
        every.append(found)
    for _ in range(20):
        for found in every:
            found.feed(stream(delta(content="y" * 1000), end=False))
            assert memory.used <= 100_000 + BATCH
    assert any(found.truncated for found in every)
    for found in every:
        found.answer()
    every.clear()
    del found
    assert memory.used == 0


def test_a_prompt_for_which_there_is_no_room_is_left_out() -> None:
    memory = Memory(100)
    found = Gathered("full", CHUNKS, Caps(1000, 1000), memory)
    found.take_json(b'{"prompt": "' + b"x" * 200 + b'"}')
    assert (found.prompt, found.truncated, memory.used) == (b"", True, 0)


# other bodies


@pytest.mark.parametrize("size", [0, 10])
def test_a_compressed_answer_is_read(size: int) -> None:
    assert report(CHUNKS, gzip.compress(TOOLS), size=size, encoding="gzip") == CALLED
    body = json.dumps({"text": "hi"}).encode()
    assert report(CHUNKS, gzip.compress(body), JSON, size=size, encoding="gzip") == {
        "text": "hi",
        "finish_reasons": [""],
    }


def test_a_bomb_is_not_inflated() -> None:
    bomb = gzip.compress(b"data: " + b"x" * 200_000_000)
    found = gathered(CHUNKS, [bomb], encoding="gzip")
    assert found.answer().report() is None
    assert found.truncated


def test_what_cannot_be_read_says_so() -> None:
    assert gathered(CHUNKS, [b"x"], encoding="br").not_kept == "content-encoding br"
    assert gathered(CHUNKS, [b"x"], "audio/wav").not_kept == "content-type audio/wav"


def test_the_error_of_a_server_is_the_answer() -> None:
    error = {"message": "too long", "type": "BadRequestError", "code": 400}
    assert report(CHUNKS, json.dumps({"error": error}).encode(), JSON, status=400) == {"error": error}
    assert report(CHUNKS, b"Bad Gateway", "text/html", status=502) == {"error": "Bad Gateway"}


def test_a_plain_text_is_the_answer() -> None:
    assert report(CHUNKS, b"what was said", "text/plain; charset=utf-8")["text"] == "what was said"
