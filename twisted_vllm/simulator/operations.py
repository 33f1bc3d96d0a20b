"""What an operator asks a server: its models, health, version, load and metrics; and the sleep of development mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted_vllm.simulator.engine import VERSION, Engine, ModelCounts
from twisted_vllm.simulator.refusals import ValidationFailed
from twisted_vllm.simulator.replies import Answer, Call, Reply, json_answer
from twisted_vllm.simulator.settings import MAX_MODEL_LEN

_METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


#: reads one metric of one model: its labels beside the model's, each after a comma, and its value
ReadMetric = Callable[[ModelCounts], Iterable[tuple[str, int]]]


def models(call: Call, engine: Engine) -> Reply:
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
    return json_answer({"object": "list", "data": data})


def health(call: Call, engine: Engine) -> Reply:
    """Answer ``GET /health`` and ``/ping``."""
    return Answer(content_type=None)


def version(call: Call, engine: Engine) -> Reply:
    """Answer ``GET /version``."""
    return json_answer({"version": VERSION})


def load(call: Call, engine: Engine) -> Reply:
    """Answer ``GET /load``."""
    return json_answer({"server_load": engine.running})


def sleep(call: Call, engine: Engine) -> Reply:
    """Answer ``POST /sleep?level=``; generating routes answer 503 until the server is woken."""
    given = call.query.get("level", ["1"])[-1]
    if given not in ("0", "1", "2"):
        kind, message = "int_parsing", "Input should be a valid integer, unable to parse string as an integer"
        if given.lstrip("-").isdecimal():
            low = given.startswith("-")
            kind = "greater_than_equal" if low else "less_than_equal"
            message = f"Input should be {'greater than or equal to 0' if low else 'less than or equal to 2'}"
        raise ValidationFailed([(kind, "query.level", message, given)])
    engine.sleep_level = int(given)
    return json_answer({"status": "sleeping", "level": int(given)})


def wake_up(call: Call, engine: Engine) -> Reply:
    """Answer ``POST /wake_up``."""
    engine.sleep_level = None
    return json_answer({"status": "awake", "tags": call.query.get("tags")})


def is_sleeping(call: Call, engine: Engine) -> Reply:
    """Answer ``GET /is_sleeping``."""
    return json_answer({"is_sleeping": engine.sleep_level is not None})


def metrics(call: Call, engine: Engine) -> Reply:
    """Answer ``GET /metrics`` with some of vLLM's metrics, under vLLM's names; the numbers are the simulator's own."""
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
    return Answer("\n".join([*lines, ""]).encode(), content_type=_METRICS_TYPE)


def _plain(read: Callable[[ModelCounts], int]) -> ReadMetric:
    return lambda counts: [("", read(counts))]


def _by_reason(counts: ModelCounts) -> Iterable[tuple[str, int]]:
    found = (("stop", counts.stopped), ("length", counts.cut_by_length), ("abort", counts.aborted))
    return [(f',finished_reason="{reason}"', value) for reason, value in found]


def _by_state(current: str) -> ReadMetric:
    return lambda counts: [(f',sleep_state="{state}"', int(state == current)) for state in _SLEEP_STATES]


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
