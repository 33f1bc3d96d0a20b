"""The pooling routes: embeddings, scores, reranking and classification. Their numbers are derived from the text."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from typing import Any

from twisted_vllm.simulator.apis.generation import body_of, content_text, served_model, whole_usage_of
from twisted_vllm.simulator.engine import Engine, count_tokens
from twisted_vllm.simulator.fields import Fields
from twisted_vllm.simulator.messages import (
    ApiError,
    ApiRequest,
    ApiResponse,
    Response,
    ValidationError,
    Work,
    bad_parameter,
    json_response,
)

DEFAULT_DIMENSIONS = 16
MAX_DIMENSIONS = 4096

_LABELS = ("LABEL_0", "LABEL_1")
_PAIR_NAMES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


def embeddings(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /v1/embeddings``; raises `ApiError`."""
    fields = body_of(request)
    inputs = _inputs(fields)
    name, encoding, dimensions = fields.string("model"), fields.string("encoding_format"), fields.integer("dimensions")
    fields.check()
    model = served_model(engine, name, pooling=True)
    if dimensions is not None and not 1 <= dimensions <= MAX_DIMENSIONS:
        raise bad_parameter(f"dimensions must be from 1 to {MAX_DIMENSIONS}, got {dimensions}.", "dimensions")
    if encoding not in (None, "float", "base64"):
        fields.fail("literal_error", "encoding_format", "Input should be 'float' or 'base64'")
    vectors = [_vector(text, dimensions or DEFAULT_DIMENSIONS) for text, _ in inputs]
    data = [
        {"index": index, "object": "embedding", "embedding": _packed(vector) if encoding == "base64" else vector}
        for index, vector in enumerate(vectors)
    ]
    return _list_response(engine, "embd", model, data, sum(tokens for _, tokens in inputs))


def score(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /score`` and ``/v1/score``; raises `ApiError`."""
    fields = body_of(request)
    name = fields.string("model")
    left_name, right_name = _pair_names(fields)
    fields.check()
    model = served_model(engine, name, pooling=True)
    left, right = _texts(fields.get(left_name)), _texts(fields.get(right_name))
    if not left or not right:
        raise ApiError("At least one text_pair element must be given")
    if len(left) == 1:
        left *= len(right)
    if len(left) != len(right):
        raise ApiError("Input lengths must be either 1:1, 1:N or N:N")
    pairs = list(zip(left, right, strict=True))
    data = [{"index": index, "object": "score", "score": similarity(*pair)} for index, pair in enumerate(pairs)]
    return _list_response(engine, "score", model, data, _pair_tokens(pairs))


def rerank(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /rerank``, ``/v1/rerank`` and ``/v2/rerank``; raises `ApiError`."""
    fields = body_of(request)
    fields.require("query", "documents")
    name, top_n = fields.string("model"), fields.integer("top_n")
    fields.check()
    model = served_model(engine, name, pooling=True)
    query = " ".join(_texts(fields.get("query")))
    documents = _texts(fields.get("documents"))
    if not documents:
        raise ApiError("At least one text_pair element must be given")
    results: list[dict[str, Any]] = [
        {"index": index, "document": {"text": text, "multi_modal": None}, "relevance_score": similarity(query, text)}
        for index, text in enumerate(documents)
    ]
    results.sort(key=lambda result: result["relevance_score"], reverse=True)
    if top_n is not None and top_n > 0:
        results = results[:top_n]
    tokens = _pair_tokens([(query, text) for text in documents])
    value = {
        "id": f"score-{engine.new_id()}",
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": results,
    }
    return json_response(value, work=Work(model, tokens))


def classify(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /classify``; raises `ApiError`."""
    model, inputs = _model_and_inputs(request, engine)
    data = []
    for index, (text, _) in enumerate(inputs):
        first = _fraction(text)
        label = _LABELS[0 if first >= 0.5 else 1]
        data.append({"index": index, "label": label, "probs": [first, 1 - first], "num_classes": len(_LABELS)})
    return _list_response(engine, "classify", model, data, sum(tokens for _, tokens in inputs))


def pooling(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /pooling``; raises `ApiError`."""
    model, inputs = _model_and_inputs(request, engine, "data")
    data = [
        {"index": index, "object": "pooling", "data": _vector(text, DEFAULT_DIMENSIONS)}
        for index, (text, _) in enumerate(inputs)
    ]
    return _list_response(engine, "pooling", model, data, sum(tokens for _, tokens in inputs))


def similarity(left: str, right: str) -> float:
    """Return a score between 0 and 1 that grows with the share of common words."""
    words, others = set(left.lower().split()), set(right.lower().split())
    common = len(words & others) / max(1, len(words | others))
    return round(0.05 + 0.85 * common + 0.1 * _fraction(f"{left}\0{right}"), 6)


def _model_and_inputs(request: ApiRequest, engine: Engine, *also: str) -> tuple[str, list[tuple[str, int]]]:
    fields = body_of(request)
    inputs = _inputs(fields, *also)
    name = fields.string("model")
    fields.check()
    return served_model(engine, name, pooling=True), inputs


def _inputs(fields: Fields, *also: str) -> list[tuple[str, int]]:
    if not fields.has("input") and fields.has("messages"):
        text = "\n".join(
            content_text(item.get("content")) for item in fields.items("messages") if isinstance(item, dict)
        )
        return [(text, max(1, count_tokens(text)))]
    if not fields.has("input"):
        fields.require("input", "messages", *also)
        return []
    given = fields.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list):
        fields.fail("list_type", "input", "Input should be a valid list")
    if not given:
        raise ApiError("You must pass at least one prompt")
    found = []
    for item in given:
        if isinstance(item, list):
            found.append((" ".join(map(str, item)), max(1, len(item))))
        elif isinstance(item, str):
            found.append((item, max(1, count_tokens(item))))
        else:
            fields.fail("string_type", "input", "Input should be a valid string")
    return found


def _pair_names(fields: Fields) -> tuple[str, str]:
    for names in _PAIR_NAMES:
        if all(fields.has(name) for name in names):
            return names
    for names in _PAIR_NAMES:
        fields.require(*names)
    fields.check()
    # Both fields of a pair were sent, one of them as null.
    raise ValidationError([("list_type", "body.text_1", "Input should be a valid list", "None")])


def _texts(given: object) -> list[str]:
    items = given if isinstance(given, list) else [given]
    return [_text(item) for item in items]


def _text(item: object) -> str:
    if isinstance(item, dict):
        return item["text"] if isinstance(item.get("text"), str) else content_text(item.get("content"))
    return item if isinstance(item, str) else ""


def _pair_tokens(pairs: list[tuple[str, str]]) -> int:
    return sum(max(1, count_tokens(left) + count_tokens(right)) for left, right in pairs)


def _list_response(engine: Engine, prefix: str, model: str, data: list[dict[str, Any]], tokens: int) -> ApiResponse:
    value = {
        "id": f"{prefix}-{engine.new_id()}",
        "object": "list",
        "created": engine.now(),
        "model": model,
        "data": data,
        "usage": whole_usage_of(tokens, 0),
    }
    return json_response(value, work=Work(model, tokens))


def _fraction(text: str) -> float:
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return round(int.from_bytes(digest[:4]) / 0xFFFF_FFFF, 6)


def _vector(text: str, dimensions: int) -> list[float]:
    seed = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    # SHAKE returns any number of bytes: two for each number.
    raw = struct.unpack(f">{dimensions}h", hashlib.shake_128(seed).digest(2 * dimensions))
    length = math.sqrt(sum(number * number for number in raw)) or 1.0
    # Rounded to float32, so that both encodings give the same numbers.
    return list(struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *(n / length for n in raw))))


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
