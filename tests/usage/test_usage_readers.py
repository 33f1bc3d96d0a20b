"""The usage in every response of vLLM is read correctly, in any pieces.

``answers/`` holds what a vLLM 0.32.0 answered (small models on a CPU), byte for byte, streams included. Where those
servers had no such route or model (decisions, reasoning), the shapes are those of vLLM's protocol classes, named beside
each.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.usage.usage_texts import COUNTS, NESTED, PATIENT, TEXTS, pieces, spellings
from tests.usage_reading import reader_for, reading_of
from twisted_vllm.api_routes import ROUTES, UsageFormat
from twisted_vllm.usage.readers.document import MAX_WHOLE
from twisted_vllm.usage.readers.registry import MAX_INFLATED, MAX_READINGS, READERS
from twisted_vllm.usage.readers.streams import ChunkStream
from twisted_vllm.usage.records import Usage

ANSWERS = Path(__file__).parent / "answers"
JSON = b"application/json"
SSE = b"text/event-stream; charset=utf-8"


def read(route: str, parts: list[bytes], content_type: bytes = JSON, **headers: bytes) -> Usage | None:
    reader = reader_for(route, content_type, **headers)
    for part in parts:
        reader.feed(part)
    return reader.usage()


def used(prompt: int, completion: int = 0, total: int | None = None, **others: Any) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion if total is None else total,
        **others,
    )


RECORDED = [
    ("chat.json", "/v1/chat/completions", used(8, 6)),
    ("chat_batch.json", "/v1/chat/completions/batch", used(16, 12)),
    ("chat_usage.sse", "/v1/chat/completions", used(8, 6)),
    ("chat_continuous.sse", "/v1/chat/completions", used(8, 6)),
    ("completions.json", "/v1/completions", used(3, 6)),
    ("completions_usage.sse", "/v1/completions", used(3, 6)),
    ("responses.json", "/v1/responses", used(4, 6)),
    ("responses.sse", "/v1/responses", used(4, 6)),
    ("messages.json", "/v1/messages", used(8, 6)),
    ("messages.sse", "/v1/messages", used(8, 6)),
    ("count_tokens.json", "/v1/messages/count_tokens", used(0, 0, 8)),
    ("tokenize.json", "/tokenize", used(0, 0, 8)),
    ("generative_scoring.json", "/generative_scoring", used(12, 2)),
    ("score.json", "/score", used(4)),
    ("v1_score.json", "/v1/score", used(2)),
    ("rerank.json", "/rerank", used(6)),
    ("v1_rerank.json", "/v1/rerank", used(6)),
    ("v2_rerank.json", "/v2/rerank", used(6)),
    ("classify.json", "/classify", used(2)),
    ("pooling.json", "/pooling", used(1)),
    ("embeddings.json", "/v1/embeddings", used(10)),
    ("embeddings_base64.json", "/v1/embeddings", used(5)),
    ("cohere_embed.json", "/v2/embed", used(10)),
    ("chat_cached.json", "/v1/chat/completions", used(322, 4, cached_tokens=256)),
    ("messages_cached.json", "/v1/messages", used(322, 4, cached_tokens=256)),
    ("messages_cached.sse", "/v1/messages", used(322, 4, cached_tokens=256)),
    ("responses_cached.sse", "/v1/responses", used(322, 4, cached_tokens=256)),
    ("cohere_chat.json", "/cohere/v2/chat", used(322, 4, cached_tokens=256)),
    ("cohere_chat.sse", "/cohere/v2/chat", used(4, 4)),
    ("generate.json", "/inference/v1/generate", used(4, 3)),
    ("generate_usage.sse", "/inference/v1/generate", used(4, 3)),
    # 3.25 seconds of audio: rounded up, unless in verbose JSON; in a stream as frames, 100 to a second
    ("transcription.json", "/v1/audio/transcriptions", Usage(audio_ms=4000)),
    ("transcription_verbose.json", "/v1/audio/transcriptions", Usage(audio_ms=3250)),
    ("transcription_usage.sse", "/v1/audio/transcriptions", used(329, 4)),
    ("transcription_continuous.sse", "/v1/audio/transcriptions", used(329, 4)),
]


@pytest.mark.parametrize(("name", "route", "usage"), RECORDED, ids=[name for name, _, _ in RECORDED])
def test_what_vllm_answered_is_read_in_any_pieces(name: str, route: str, usage: Usage) -> None:
    answer = (ANSWERS / name).read_bytes()
    content_type = SSE if name.endswith(".sse") else JSON
    assert read(route, [answer], content_type) == usage
    for size in (1, 2, 7, 64, 500):
        parts = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert read(route, parts, content_type) == usage


@pytest.mark.parametrize(("name", "route", "usage"), [("pooling", "/pooling", 1), ("embeddings", "/v1/embeddings", 10)])
def test_embeddings_sent_as_bytes_name_their_usage_in_a_header(name: str, route: str, usage: int) -> None:
    metadata = (ANSWERS / f"{name}.bytes.metadata").read_bytes()
    assert read(route, [b"\x0b\x08\x03?"], b"application/octet-stream", metadata=metadata) == used(usage)


def test_embeddings_sent_as_bytes_only_are_estimated() -> None:
    reader = reader_for("/v1/embeddings", b"application/octet-stream")
    reader.feed(b"\x0b\x08\x03?")
    assert reader.usage() is None
    assert reader.estimate(11) == used(11, estimated=True)


SHAPED = {
    # UsageInfo with its details (serve/engine/protocol.py)
    "cached and reasoning": (
        "/v1/chat/completions",
        {
            "usage": {
                "prompt_tokens": 100,
                "total_tokens": 150,
                "completion_tokens": 50,
                "prompt_tokens_details": {
                    "cached_tokens": 64,
                    "created_cache_tokens": 16,
                    "multimodal_tokens": {"image": 9},
                },
                "completion_tokens_details": {"reasoning_tokens": 30},
            }
        },
        used(100, 50, cached_tokens=64, reasoning_tokens=30),
    ),
    "embeddings": (
        "/v1/embeddings",
        {"data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": None}},
        used(7),
    ),
    # ResponseUsage (openai/responses/protocol.py)
    "responses with details": (
        "/v1/responses",
        {
            "metadata": {"usage": {"input_tokens": 1, "output_tokens": 1}},
            "usage": {
                "input_tokens": 20,
                "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0, "input_tokens_per_turn": [20]},
                "output_tokens": 9,
                "output_tokens_details": {"reasoning_tokens": 4, "tool_output_tokens": 0},
                "total_tokens": 29,
            },
        },
        used(20, 9, cached_tokens=16, reasoning_tokens=4),
    ),
    # AnthropicUsage (anthropic/protocol.py): input tokens are those that the cache neither gave nor took
    "messages with a cache": (
        "/v1/messages",
        {
            "usage": {
                "input_tokens": 10,
                "output_tokens": 5,
                "cache_read_input_tokens": 32,
                "cache_creation_input_tokens": 8,
            }
        },
        used(50, 5, cached_tokens=32),
    ),
    # TranscriptionUsageAudio, TranscriptionResponseVerbose (speech_to_text/transcription/protocol.py)
    "transcription": (
        "/v1/audio/transcriptions",
        {"text": "hello", "usage": {"type": "duration", "seconds": 12}},
        Usage(audio_ms=12_000),
    ),
    "verbose transcription": (
        "/v1/audio/transcriptions",
        {"duration": 3.25, "language": "en", "text": '"duration": 9', "segments": [{"duration": 99}], "words": None},
        Usage(audio_ms=3250),
    ),
    "verbose translation, as OpenAI writes a duration": (
        "/v1/audio/translations",
        {"duration": "3.25", "language": "en", "text": "x"},
        Usage(audio_ms=3250),
    ),
    # DecisionUsage (generate/structured_decisions/protocol.py)
    "decisions": ("/v1/systemone", {"answers": {}, "usage": {"input_tokens": 30, "output_tokens": 3}}, used(30, 3)),
    # CohereUsage (cohere/protocol.py), CohereMeta (pooling/embed/protocol.py)
    "Cohere's chat": (
        "/cohere/v2/chat",
        {
            "usage": {
                "billed_units": {"input_tokens": 5.0, "output_tokens": 2.0},
                "tokens": {"input_tokens": 5.0, "output_tokens": 2.0},
                "cached_tokens": 4.0,
            }
        },
        used(5, 2, cached_tokens=4),
    ),
    "Cohere's embeddings": (
        "/v2/embed",
        {
            "embeddings": {"float": [[0.5]]},
            "texts": ["meta"],
            "meta": {"billed_units": {"input_tokens": 6, "image_tokens": 2}},
        },
        used(8),
    ),
}


@pytest.mark.parametrize(("route", "answer", "usage"), SHAPED.values(), ids=SHAPED.keys())
def test_answers_of_every_shape_are_read_small_and_large(route: str, answer: dict[str, Any], usage: Usage) -> None:
    small = json.dumps(answer).encode()
    large = json.dumps({"before": "x" * MAX_WHOLE, **answer, "after": [1.5] * MAX_WHOLE}).encode()
    for body in (small, large):
        assert read(route, [body]) == usage
        assert read(route, [body[at : at + 999] for at in range(0, len(body), 999)]) == usage


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"usage"',
        b'{"usage":null}',
        b'{"usage":3}',
        b'{"usage":{"prompt_tokens":"3"}}',
        b'{"text":"x"}',
        b"\xff\xfe",
        b'{"a":' * 100_000,
        b'{"duration":"inf"}',
        b'{"duration":"soon"}',
    ],
)
@pytest.mark.parametrize(
    ("route", "prompt"), [("/v1/chat/completions", 11), ("/v1/audio/transcriptions", 0), ("/tokenize", 0)]
)
def test_a_response_without_usage_is_estimated(route: str, prompt: int, answer: bytes) -> None:
    reader = reader_for(route, JSON)
    reader.feed(answer)
    assert reader.usage() in (None, Usage())
    # an upload's size tells nothing of tokens, and who counts tokens uses none
    assert reader.estimate(11) == used(prompt, estimated=True)


def test_a_translation_names_no_usage() -> None:
    """It does only in verbose JSON (TranslationResponse, speech_to_text/translation/protocol.py)."""
    assert read("/v1/audio/translations", [(ANSWERS / "translation.json").read_bytes()]) is None


def test_nonsensical_figures_count_as_0() -> None:
    answer = b'{"usage":{"prompt_tokens":-5,"completion_tokens":1e300,"total_tokens":123456789012345678901234567890}}'
    assert read("/v1/completions", [answer]) == Usage()


@pytest.mark.parametrize(
    ("route", "content_type"),
    [
        ("/v1/models", JSON),
        ("/metrics", b"text/plain"),
        ("/v1/responses/resp_1", JSON),
        ("/detokenize", JSON),
        ("/v1/load_lora_adapter", JSON),
        ("/v1/audio/transcriptions", b"text/plain; charset=utf-8"),
        ("/v1/chat/completions", b""),
    ],
)
def test_what_uses_nothing_has_no_reader(route: str, content_type: bytes) -> None:
    assert reading_of(route, content_type) is None


def test_every_format_of_usage_has_its_readers() -> None:
    assert set(READERS) == set(UsageFormat)
    assert [usage for usage, readers in READERS.items() if readers is None] == [UsageFormat.NONE]


def test_a_stream_whose_usage_can_be_asked_for_is_one_that_the_filter_understands() -> None:
    asked = [row for row in ROUTES if row.stream_options]
    assert len(asked) == 4
    for row in asked:
        assert isinstance(reader_for(row.path, SSE), ChunkStream)


def test_the_cache_of_readings_is_bounded() -> None:
    readers = READERS[UsageFormat.CHAT]
    assert readers is not None
    json_format = readers.reading(JSON)
    for number in range(100):
        assert readers.reading(b"application/json; n=%d" % number) is json_format
        assert readers.reading.cache_info().currsize <= MAX_READINGS


def test_a_reader_says_whether_it_reads_a_stream() -> None:
    assert reader_for("/v1/completions", SSE).stream
    assert reader_for("/v1/completions", SSE, content_encoding=b"gzip").stream
    assert not reader_for("/v1/completions", b"Application/JSON; charset=utf-8").stream


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_a_compressed_response_is_read_in_any_pieces(compress: Callable[[bytes], bytes]) -> None:
    for name, route, usage in RECORDED:
        packed = compress((ANSWERS / name).read_bytes())
        content_type = SSE if name.endswith(".sse") else JSON
        for size in (1, 50, 10_000):
            parts = [packed[at : at + size] for at in range(0, len(packed), size)]
            assert read(route, parts, content_type, content_encoding=b" GZIP") == usage


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"compress"])
@pytest.mark.parametrize(("content_type", "stream"), [(JSON, False), (SSE, True)])
def test_an_answer_in_another_coding_is_estimated(content_type: bytes, stream: bool, coding: bytes) -> None:
    reader = reader_for("/v1/completions", content_type, content_encoding=coding)
    reader.feed(b"\x1b\x0f")
    assert reader.stream is stream
    assert reader.usage() is None
    assert reader.estimate(11) == used(11, estimated=True)


def test_what_does_not_decompress_or_to_far_too_much_names_no_usage() -> None:
    answer = (ANSWERS / "chat.json").read_bytes()
    assert read("/v1/chat/completions", [answer], content_encoding=b"gzip") is None
    bomb = gzip.compress(b" " * (MAX_INFLATED + 1) + answer)
    assert read("/v1/chat/completions", [bomb], content_encoding=b"gzip") is None


@PATIENT
@given(st.dictionaries(TEXTS, NESTED, max_size=4), COUNTS, COUNTS, st.booleans(), st.data())
def test_no_text_of_a_user_changes_what_an_answer_counts(
    theirs: dict[str, Any], prompt: int, completion: int, large: bool, data: st.DataObject
) -> None:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    answer = {"metadata": theirs, "tools": [theirs], "usage": usage, "text": data.draw(TEXTS)}
    if large:
        answer = {"padding": "x" * MAX_WHOLE} | answer
    body = data.draw(spellings(answer))
    at = len(body) - len(body) % 1000 if large else 0
    parts = [body[:at], *data.draw(pieces(body[at:]))]
    assert read("/v1/chat/completions", parts) == used(prompt, completion)
