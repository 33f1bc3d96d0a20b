"""Embeddings, scores, reranking, classes, tokens, transcriptions."""

from __future__ import annotations

import base64
import math
import struct
import wave
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulator.simulator_harness import Simulator, user
from twisted_vllm.simulator.apis.audio import duration, read_upload
from twisted_vllm.simulator.apis.pooling import similarity
from twisted_vllm.simulator.messages import ApiError

WHOLE_USAGE = {"completion_tokens": 0, "prompt_tokens_details": None, "completion_tokens_details": None}


def recording(seconds: float) -> bytes:
    file = BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(8_000)
        audio.writeframes(bytes(2 * int(8_000 * seconds)))
    return file.getvalue()


def form(file: bytes | None, **fields: str) -> tuple[bytes, dict[str, str]]:
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    body = "".join(parts).encode()
    if file is not None:
        body += b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + file + b"\r\n"
    return body + b"--XX--\r\n", {"content-type": "multipart/form-data; boundary=XX"}


def transcribe(simulator: Simulator, file: bytes | None, **fields: str) -> Any:
    return simulator.post("/v1/audio/transcriptions", *form(file, **fields))


def test_an_embedding_is_a_unit_vector_and_the_same_in_both_encodings(simulator: Simulator) -> None:
    body = {"model": "large", "input": ["one two", "three"]}
    plain = simulator.post("/v1/embeddings", body).json
    packed = simulator.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json
    vector = plain["data"][0]["embedding"]
    assert struct.unpack("<16f", base64.b64decode(packed["data"][0]["embedding"])) == tuple(vector)
    assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-5)
    assert vector != plain["data"][1]["embedding"]
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3, **WHOLE_USAGE}
    assert plain["model"] == "large"


def test_dimensions_are_as_asked_for(simulator: Simulator) -> None:
    got = simulator.post("/v1/embeddings", {"input": "a", "dimensions": 5})
    assert len(got.json["data"][0]["embedding"]) == 5
    assert simulator.post("/v1/embeddings", {"input": "a", "dimensions": 0}).status == 400


def test_tokens_can_be_embedded(simulator: Simulator) -> None:
    assert simulator.post("/v1/embeddings", {"input": [[1, 2], [3]]}).json["usage"]["prompt_tokens"] == 3
    assert simulator.post("/v1/embeddings", {"input": [1, 2]}).json["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_are_one_to_many_or_many_to_many(simulator: Simulator, path: str) -> None:
    france = "What is the capital of France?"
    body = {"model": "small", "encoding_format": "float", "text_1": france, "text_2": "The capital of France is Paris."}
    one = simulator.post(path, body).json
    assert (one["object"], len(one["data"]), one["data"][0]["object"]) == ("list", 1, "score")
    assert one["usage"] == {"prompt_tokens": 12, "total_tokens": 12, **WHOLE_USAGE}
    assert len(simulator.post(path, {"text_1": "a", "text_2": ["a", "b", "c"]}).json["data"]) == 3
    assert len(simulator.post(path, {"queries": ["a", "b"], "documents": ["a", "b"]}).json["data"]) == 2
    refused = simulator.post(path, {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]})
    assert refused.json["error"]["message"] == "Input lengths must be either 1:1, 1:N or N:N"


def test_a_pooling_route_says_less_about_an_unknown_model(simulator: Simulator) -> None:
    got = simulator.post("/score", {"model": "no", "text_1": "a", "text_2": "b"})
    assert got.status == 404
    assert got.json["error"] == {
        "message": "The model `no` does not exist.",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
    }


def test_a_score_without_its_texts_names_all_that_could_be_sent(simulator: Simulator) -> None:
    got = simulator.post("/score", {"model": "small"})
    assert got.json["error"]["message"].startswith("8 validation errors:\n")


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_reranking_puts_the_document_with_the_words_of_the_query_first(simulator: Simulator, path: str) -> None:
    documents = ["apples and pears", "the capital of France is Paris", "nothing"]
    got = simulator.post(path, {"query": "capital of France", "documents": documents, "top_n": 2}).json
    assert got["results"][0]["index"] == 1
    assert len(got["results"]) == 2
    assert got["results"][0]["document"] == {"text": documents[1], "multi_modal": None}
    assert got["usage"] == {"prompt_tokens": 19, "total_tokens": 19}


@given(st.text(), st.text())
def test_a_score_lies_between_0_and_1_and_nothing_beats_equality(left: str, right: str) -> None:
    assert 0 <= similarity(left, right) <= 1
    if left.split():
        assert similarity(left, left) >= 0.9


def test_classes_have_probabilities_that_sum_up_to_1(simulator: Simulator) -> None:
    got = simulator.post("/classify", {"input": ["a b", "c"]}).json
    assert [sum(item["probs"]) for item in got["data"]] == [1, 1]
    assert got["data"][0]["num_classes"] == 2
    assert got["usage"]["prompt_tokens"] == 3


def test_pooling_gives_numbers_for_texts_and_for_conversations(simulator: Simulator) -> None:
    assert len(simulator.post("/pooling", {"input": ["a", "b"]}).json["data"]) == 2
    assert simulator.post("/pooling", {"messages": user("a b")}).json["usage"]["prompt_tokens"] == 2
    assert simulator.post("/pooling", {"input": []}).json["error"]["message"] == "You must pass at least one prompt"


def test_what_was_tokenized_can_be_put_together_again(simulator: Simulator) -> None:
    got = simulator.post("/tokenize", {"prompt": "hello hello world", "return_token_strs": True}).json
    assert (got["count"], got["token_strs"]) == (3, ["hello", "hello", "world"])
    assert simulator.post("/detokenize", {"tokens": got["tokens"]}).json == {"prompt": "hello hello world"}
    assert simulator.post("/detokenize", {"tokens": [7]}).json == {"prompt": "<7>"}


def test_a_conversation_can_be_tokenized(simulator: Simulator) -> None:
    assert simulator.post("/tokenize", {"messages": user("a b")}).json["count"] == 2
    assert simulator.post("/tokenize", {}).json["error"]["message"].startswith("2 validation errors:\n")


def test_a_transcription_says_how_long_the_recording_was(simulator: Simulator) -> None:
    got = transcribe(simulator, recording(3.2), model="small").json
    assert got["usage"] == {"type": "duration", "seconds": 4}
    assert got["text"].startswith("This text is simulated")


def test_a_transcription_can_be_verbose_or_a_stream(simulator: Simulator) -> None:
    verbose = transcribe(simulator, recording(2), response_format="verbose_json", language="de").json
    assert (verbose["duration"], verbose["language"]) == (2.0, "de")
    *chunks, usage, done = transcribe(simulator, recording(2), stream="true", stream_include_usage="true").events
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == verbose["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 5
    assert done == "[DONE]"


@pytest.mark.parametrize(
    ("file", "fields", "status", "reason"),
    [
        (None, {"model": "small"}, 400, "body.file"),
        (b"", {}, 400, "unsupported audio"),
        (b"x", {"model": "no"}, 404, "does not exist"),
        (b"x", {"response_format": "song"}, 400, "response_format"),
        (b"x", {"stream_include_usage": "true"}, 400, "Stream options"),
    ],
)
def test_a_bad_upload_is_refused(
    simulator: Simulator, file: bytes | None, fields: dict[str, str], status: int, reason: str
) -> None:
    got = transcribe(simulator, file, **fields)
    assert got.status == status
    assert reason in got.json["error"]["message"]


def test_what_is_no_recording_is_measured_by_its_size() -> None:
    assert duration(recording(1.5)) == 1.5
    assert duration(bytes(8_000)) == 2


@given(
    st.binary(max_size=300),
    st.sampled_from(["multipart/form-data; boundary=XX", "multipart/form-data", "", "text/plain"]),
)
def test_any_upload_is_read_or_refused(body: bytes, content_type: str) -> None:
    for candidate in (body, b"--XX\r\n" + body, form(body)[0]):
        try:
            upload = read_upload(candidate, content_type)
        except ApiError:
            continue
        assert upload.audio is None or isinstance(upload.audio, bytes)
