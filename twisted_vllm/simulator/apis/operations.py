"""The operator's routes: models, health, version, load, metrics, tokens, and the sleep of development mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted_vllm.simulator.apis.generation import body_of, messages_prompt, served_model
from twisted_vllm.simulator.engine import VERSION, Engine, ModelCounts
from twisted_vllm.simulator.messages import ApiRequest, ApiResponse, Response, ValidationError, json_response
from twisted_vllm.simulator.settings import MAX_MODEL_LEN

_METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


#: reads one metric of one model: its labels beside the model's, each after a comma, and its value
ReadMetric = Callable[[ModelCounts], Iterable[tuple[str, int]]]


def models(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``GET /v1/models``."""
    created = engine.now()
    data = [
        {
            "id": model,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": model,
            "parent": None,
            "max_model_len": MAX_MODEL_LEN,
            "permission": [
                {
                    "id": f"modelperm-{engine.new_id()}",
                    "object": "model_permission",
                    "created": created,
                    "allow_create_engine": False,
                    "allow_sampling": True,
                    "allow_logprobs": True,
                    "allow_search_indices": False,
                    "allow_view": True,
                    "allow_fine_tuning": False,
                    "organization": "*",
                    "group": None,
                    "is_blocking": False,
                }
            ],
        }
        for model in engine.settings.models
    ]
    return json_response({"object": "list", "data": data})


def health(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``GET /health`` and ``/ping``."""
    return ApiResponse(content_type=None)


def version(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``GET /version``."""
    return json_response({"version": VERSION})


def load(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``GET /load``."""
    return json_response({"server_load": engine.running})


def sleep(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /sleep?level=``. Until ``/wake_up``, the generating routes answer 503."""
    given = request.query.get("level", ["1"])[-1]
    if given not in ("0", "1", "2"):
        kind, message = "int_parsing", "Input should be a valid integer, unable to parse string as an integer"
        if given.lstrip("-").isdecimal():
            low = given.startswith("-")
            kind = "greater_than_equal" if low else "less_than_equal"
            message = f"Input should be {'greater than or equal to 0' if low else 'less than or equal to 2'}"
        raise ValidationError([(kind, "query.level", message, given)])
    engine.sleep_level = int(given)
    return json_response({"status": "sleeping", "level": int(given)})


def wake_up(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /wake_up``."""
    engine.sleep_level = None
    return json_response({"status": "awake", "tags": request.query.get("tags")})


def is_sleeping(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``GET /is_sleeping``."""
    return json_response({"is_sleeping": engine.sleep_level is not None})


def reset_prefix_cache(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /reset_prefix_cache``; there is no cache here."""
    return ApiResponse(content_type=None)


def tokenize(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /tokenize``; raises `ApiError`."""
    fields = body_of(request)
    name, strings = fields.string("model"), fields.boolean("return_token_strs")
    if fields.has("prompt"):
        text = fields.string("prompt") or ""
    elif fields.has("messages"):
        text, _ = messages_prompt(fields)
    else:
        text = ""
        fields.require("prompt", "messages")
    fields.check()
    served_model(engine, name)
    words = text.split()
    value = {
        "count": len(words),
        "max_model_len": MAX_MODEL_LEN,
        "tokens": [engine.word_id(word) for word in words],
        "token_strs": words if strings else None,
    }
    return json_response(value)


def detokenize(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``POST /detokenize``; raises `ApiError`."""
    fields = body_of(request)
    fields.require("tokens")
    name, tokens = fields.string("model"), fields.items("tokens")
    if not all(isinstance(token, int) for token in tokens):
        fields.fail("int_type", "tokens", "Input should be a valid integer")
    fields.check()
    served_model(engine, name)
    return json_response({"prompt": " ".join(engine.word(token) for token in tokens)})


def metrics(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``GET /metrics`` with some of vLLM's metrics, counted by the simulator."""
    lines = ["# These are the numbers of twisted-vllm-simulator: no model runs here."]
    state = _SLEEP_STATES[engine.sleep_level or 0]
    for name, kind, text, read in (
        ("num_requests_running", "gauge", "Requests that run now.", _plain(lambda c: c.running)),
        ("num_requests_waiting", "gauge", "Requests that wait; always none here.", _plain(lambda c: 0)),
        ("kv_cache_usage_perc", "gauge", "Use of the KV cache; always none here.", _plain(lambda c: 0)),
        ("prefix_cache_queries_total", "counter", "Tokens looked up.", _plain(lambda c: c.prompt_tokens)),
        ("prefix_cache_hits_total", "counter", "Tokens found; always none here.", _plain(lambda c: 0)),
        ("prompt_tokens_total", "counter", "Tokens read.", _plain(lambda c: c.prompt_tokens)),
        ("generation_tokens_total", "counter", "Tokens written.", _plain(lambda c: c.generation_tokens)),
        ("request_success_total", "counter", "Requests done.", _by_reason),
        ("engine_sleep_state", "gauge", "1 for the state that the engine is in.", _by_state(state)),
    ):
        lines += (f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} {kind}")
        for model, counts in engine.counts.items():
            for labels, value in read(counts):
                shown = _escaped(model)
                lines.append(f'vllm:{name}{{engine="0",model_name="{shown}"{labels}}} {float(value)}')
    return ApiResponse("\n".join([*lines, ""]).encode(), content_type=_METRICS_TYPE)


def _plain(read: Callable[[ModelCounts], int]) -> ReadMetric:
    return lambda counts: [("", read(counts))]


def _by_reason(counts: ModelCounts) -> Iterable[tuple[str, int]]:
    found = (("stop", counts.stopped), ("length", counts.cut_by_length), ("abort", counts.aborted))
    return [(f',finished_reason="{reason}"', value) for reason, value in found]


def _by_state(current: str) -> ReadMetric:
    return lambda counts: [(f',sleep_state="{state}"', int(state == current)) for state in _SLEEP_STATES]


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
