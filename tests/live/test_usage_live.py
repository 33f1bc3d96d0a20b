"""The usage readers count what vLLM counts itself, and a filtered stream equals a direct one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.live.live_gateway import ask, json_request
from tests.live.live_ledger import ATTEMPTS, CHAT, COMPLETIONS, EVIL, NAMES, counted_by_vllm, varied
from tests.usage_reading import reader_for
from twisted_vllm.api_routes import CHAT_FIELDS, classify
from twisted_vllm.bodies.edits import splice, usage_edits
from twisted_vllm.bodies.json_body import read_body
from twisted_vllm.usage.readers.stream_filter import Fingerprint, StreamFilter
from twisted_vllm.usage.readers.streams import ChunkStream


def test_the_readers_count_what_vllm_counts(vllm_url: str, chat_model: str) -> None:
    for _ in range(ATTEMPTS):
        before = counted_by_vllm(vllm_url)
        prompt = generation = 0
        requests = list(varied(chat_model))
        for route, body in requests:
            asked = json.dumps(body).encode()
            row = classify(b"POST", route.encode()).row
            facts = read_body(asked, row.fields)
            edits = usage_edits(asked, facts) if row.stream_options else ()
            answer = ask(
                vllm_url, "POST", route, headers=[("Content-Type", "application/json")], body=splice(asked, edits)
            )
            assert answer.status == 200, answer.body
            reader = reader_for(route, (answer.header("content-type") or "").encode())
            feed: Callable[[bytes], object] = reader.feed
            if edits:
                assert isinstance(reader, ChunkStream)
                feed = StreamFilter(reader).feed
            for at in range(0, len(answer.body), 61):
                feed(answer.body[at : at + 61])
            usage = reader.usage()
            assert usage is not None, (route, body)
            assert not usage.estimated
            prompt += usage.prompt_tokens
            generation += usage.completion_tokens
        after = counted_by_vllm(vllm_url)
        counted = (after[0] - before[0], after[1] - before[1])
        if counted == (prompt, generation):
            break
    assert len(requests) >= 50
    assert counted == (prompt, generation)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stream_options": None},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {"include_usage": None, "continuous_usage_stats": False}},
        {"stream_options": {"continuous_usage_stats": True}},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"stream_options": {"include_usage": "yes"}},
        {"max_tokens": 1},
        {"echo": True},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_a_filtered_stream_is_a_direct_one(vllm_url: str, chat_model: str, route: str, more: dict[str, Any]) -> None:
    text = {"messages": [{"role": "user", "content": "Say hi"}]} if route == CHAT else {"prompt": "Say"}
    asked = json_request({"model": chat_model, "temperature": 0, "max_tokens": 9, "stream": True, **text, **more})
    facts = read_body(asked["body"], CHAT_FIELDS)
    spliced = asked | {"body": splice(asked["body"], usage_edits(asked["body"], facts))}
    for _ in range(ATTEMPTS):
        direct = ask(vllm_url, "POST", route, **asked).body
        answer = ask(vllm_url, "POST", route, **spliced).body
        if spliced != asked:
            reader = ChunkStream(chat=route == CHAT)
            stream = StreamFilter(reader, Fingerprint())
            answer = b"".join(stream.feed(answer[at : at + 61]) for at in range(0, len(answer), 61)) + stream.finish()
            assert reader.usage() is not None
        if NAMES.sub(b"", answer) == NAMES.sub(b"", direct):
            break
    assert NAMES.sub(b"", answer) == NAMES.sub(b"", direct)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/score", {"text_1": "a", "text_2": ["b", EVIL]}),
        ("/v1/score", {"text_1": EVIL, "text_2": "b"}),
        ("/rerank", {"query": "a", "documents": ["b", EVIL]}),
        ("/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
        ("/v2/rerank", {"query": "a", "documents": ["b", "c"]}),
        ("/classify", {"input": ["a", "b c"]}),
        ("/pooling", {"input": "a b"}),
        ("/pooling", {"input": "a b", "encoding_format": "base64"}),
        ("/pooling", {"input": "a b", "encoding_format": "bytes"}),
    ],
)
def test_scores_and_classes_are_counted_too(score_url: str, score_model: str, route: str, body: dict[str, Any]) -> None:
    for _ in range(ATTEMPTS):
        before = counted_by_vllm(score_url)
        answer = ask(score_url, "POST", route, **json_request({"model": score_model, **body}))
        assert answer.status == 200, answer.body
        content_type, metadata = ((answer.header(name) or "").encode() for name in ("content-type", "metadata"))
        reader = reader_for(route, content_type, metadata=metadata)
        reader.feed(answer.body)
        usage = reader.usage()
        assert usage is not None
        counted, reported = counted_by_vllm(score_url)[0] - before[0], usage.prompt_tokens
        if counted == reported:
            break
    assert counted == reported > 0
