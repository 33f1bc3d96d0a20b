"""What an operator sees of a simulated server."""

from __future__ import annotations

import pytest
from twisted.web.resource import IResource, Resource
from zope.interface.verify import verifyObject

from tests.simulator.simulator_harness import NOW, Simulator, user
from twisted_vllm.simulator.settings import SimulatorSettings

CHAT = "/v1/chat/completions"


def test_it_says_that_it_is_a_simulator(simulator: Simulator) -> None:
    for path in ("/version", "/health", "/nothing", "/v1/models"):
        assert simulator.get(path).headers["server"] == "twisted-vllm-simulator"
    assert simulator.get("/version").json == {"version": "0.32.0-simulator"}
    assert b"twisted-vllm-simulator" in simulator.get("/metrics").body
    assert simulator.get("/openapi.json").json["info"]["title"] == "twisted-vllm-simulator"


def test_every_model_is_listed(simulator: Simulator) -> None:
    models = simulator.get("/v1/models").json
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["small", "large"]
    assert models["data"][0]["created"] == NOW
    assert models["data"][0]["permission"][0]["object"] == "model_permission"


def test_health_is_an_empty_200(simulator: Simulator) -> None:
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        got = simulator.call(method, path)
        assert (got.status, got.body, got.headers["content-length"]) == (200, b"", "0")
        assert "content-type" not in got.headers


def test_metrics_are_told_apart_by_model(simulator: Simulator) -> None:
    simulator.post("/v1/embeddings", {"model": "large", "input": "one two three"})
    assert simulator.get("/metrics").headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    assert simulator.metric("prompt_tokens_total", "large") == 3
    assert simulator.metric("prompt_tokens_total", "small") == 0
    assert simulator.metric("request_success_total", "large", finished_reason="stop") == 1


def test_a_model_name_cannot_break_the_metrics() -> None:
    simulator = Simulator(SimulatorSettings(models=('a"} 1\nb\\',)))
    lines = simulator.get("/metrics").body.decode().splitlines()
    assert 'vllm:num_requests_running{engine="0",model_name="a\\"} 1\\nb\\\\"} 0.0' in lines


def test_a_server_that_was_put_to_sleep_does_not_answer_until_it_is_woken(simulator: Simulator) -> None:
    assert simulator.call("POST", "/sleep?level=2").json == {"status": "sleeping", "level": 2}
    assert simulator.get("/is_sleeping").json == {"is_sleeping": True}
    assert simulator.metric("engine_sleep_state", sleep_state="discard_all") == 1
    assert simulator.post(CHAT, {"messages": user("hi")}).status == 503
    assert simulator.call("POST", "/wake_up").json == {"status": "awake", "tags": None}
    assert simulator.post(CHAT, {"messages": user("hi")}).status == 200


@pytest.mark.parametrize("level", ["3", "-1", "x", ""])
def test_a_sleep_that_there_is_not_is_refused(simulator: Simulator, level: str) -> None:
    got = simulator.call("POST", f"/sleep?level={level}")
    assert (got.status, got.json["error"]["param"]) == (400, "query.level")
    assert simulator.get("/is_sleeping").json == {"is_sleeping": False}


def test_ids_are_not_given_twice(simulator: Simulator) -> None:
    ids = {simulator.post(CHAT, {"messages": user("hi"), "max_tokens": 1}).json["id"] for _ in range(10)}
    assert len(ids) == 10


def test_it_is_a_leaf_resource(simulator: Simulator) -> None:
    assert verifyObject(IResource, simulator.resource)
    assert simulator.resource.isLeaf
    with pytest.raises(TypeError, match="answers every path"):
        simulator.resource.putChild(b"x", Resource())


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"models": ()}, "models"), ({"models": ("",)}, "models"), ({"token_interval": -1}, "token_interval")]
    + [({"first_token": value}, "first_token") for value in (float("nan"), float("inf"))],
)
def test_settings_that_cannot_be_used_are_refused_by_name(wrong: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SimulatorSettings(**wrong)  # type: ignore[arg-type]  # wrong on purpose
