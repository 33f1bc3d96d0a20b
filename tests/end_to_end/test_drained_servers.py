"""A drained server gets no new requests; what is in flight ends, and what only it has still goes there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import COMPLETION, HOST, capped, eventually, request_bytes, server_at
from tests.end_to_end.messages import whole
from twisted_vllm.config.settings import ModelEntry, RoutingSettings

ANSWER = whole(b'{"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
ROUND_ROBIN = RoutingSettings(routing_strategy="round-robin")

Fleet = tuple[Any, Any, Any]


@pytest.fixture
def fleet(stand_in: Any, gateway_to: Any) -> Callable[..., Fleet]:
    """Return two servers of the model ``m``, and a gateway in front of them."""

    def make(answer: bytes | None = ANSWER, server: Callable[[int], Any] = server_at, **settings: Any) -> Fleet:
        one, two = stand_in(answer), stand_in(answer)
        for each in (one, two):
            each.respond = partial(respond, each)
        entries = tuple(ModelEntry("m", "m", server(each.port)) for each in (one, two))
        return one, two, gateway_to(None, **{"models": entries, "routing": ROUND_ROBIN, **settings})

    return make


def respond(server: Any, wire: Any) -> None:
    """Answer what asks for models at once, and the rest as the test says."""
    last = wire.received.rpartition(b"HTTP/1.1")[0].rpartition(b"\n")[2]
    if b"GET /v1/models" in last:
        wire.send(whole(b'{"data":[{"id":"m"},{"id":"lora"}]}'))
    elif server.answer is not None and wire.received.endswith((b"\r\n\r\n", b"}")):
        wire.send(server.answer)


def name_of(server: Any) -> str:
    return f"{HOST}:{server.port}"


def requests_at(server: Any) -> int:
    return sum(connection.received.count(b"POST /v1/completions") for connection in server.connections)


async def complete(gateway: Any, model: str = "m", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.ask("POST", "/vllm/v1/completions", headers=named, body={"model": model, "prompt": "x"})


async def listed(gateway: Any) -> dict[str, dict[str, Any]]:
    answer = await gateway.ask("GET", "/server/list")
    assert answer.status == 200, answer.body
    return {row["server"]: row for row in answer.json["servers"]}


@pytest_twisted.ensureDeferred
async def test_a_drained_server_gets_no_new_requests_until_it_is_undrained(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    answer = await gateway.ask("POST", "/server/drain", body={"server": name_of(one), "reason": "new driver"})
    assert answer.status == 200, answer.body
    row = answer.json["server"]
    assert (row["state"], row["reason"], row["gets_requests"]) == ("drained", "new driver", False)
    assert row["drained"]["by"] == "master"
    assert answer.json["changed"] is True
    assert answer.json["warnings"] == []
    for _ in range(6):
        assert (await complete(gateway)).status == 200
    assert (requests_at(one), requests_at(two)) == (0, 6)
    health = (await gateway.ask("GET", "/health")).json
    assert [each["state"] for each in health["unhealthy_endpoints"]] == ["drained"]
    assert health["unhealthy_endpoints"][0]["reason"] == "new driver"
    metrics = (await gateway.ask("GET", "/metrics")).body.decode()
    assert f'vllm_passthrough_upstream_state{{server="{name_of(one)}",state="drained"}} 1.0' in metrics
    assert f'vllm_passthrough_upstream_healthy{{server="{name_of(one)}"}} 0.0' in metrics
    again = await gateway.ask("POST", "/server/drain", body={"server": f"http://{name_of(one)}"})
    assert (again.json["changed"], again.json["server"]["reason"]) == (False, "new driver")
    answer = await gateway.ask("POST", "/server/undrain", body={"server": name_of(one), "reason": "done"})
    assert (answer.json["server"]["state"], answer.json["changed"]) == ("closed", True)
    for _ in range(4):
        assert (await complete(gateway)).status == 200
    assert (requests_at(one), requests_at(two)) == (2, 8)
    audited = (await gateway.ask("GET", "/audit/list?object_type=server&sort_order=asc")).json["audit_logs"]
    assert [(each["action"], each["actor"], each["object_id"]) for each in audited] == [
        ("server/drain", "master", f"http://{name_of(one)}"),
        ("server/undrain", "master", f"http://{name_of(one)}"),
    ]
    assert audited[0]["after"]["reason"] == "new driver"


@pytest_twisted.ensureDeferred
async def test_what_is_in_flight_at_a_drained_server_ends(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet(None)
    wire = await gateway.send(COMPLETION)
    first = await one.connection()
    await first.until_received(b"/v1/completions")
    await gateway.ask("POST", "/server/drain", body={"server": name_of(one)})
    assert (await listed(gateway))[name_of(one)]["in_flight"] == 1
    first.send(ANSWER)
    await wire.until_received(b"choices")
    assert (await listed(gateway))[name_of(one)]["in_flight"] == 0
    assert not two.connections or requests_at(two) == 0


@pytest_twisted.ensureDeferred
async def test_the_last_server_of_a_model_is_drained_with_a_warning(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    await gateway.ask("POST", "/server/drain", body={"server": name_of(one)})
    answer = await gateway.ask("POST", "/server/drain", body={"server": name_of(two)})
    assert answer.json["warnings"] == [
        "No other server of `m` gets requests: its requests are refused with 503 until one does."
    ]
    refused = await complete(gateway)
    assert (refused.status, refused.error["code"]) == (503, "no_healthy_upstream")
    assert refused.header("retry-after") == "30"
    assert "by the operator" in refused.error["message"]
    assert requests_at(one) == requests_at(two) == 0


@pytest_twisted.ensureDeferred
async def test_another_model_is_asked_in_place_of_one_whose_servers_are_drained(stand_in: Any, gateway_to: Any) -> None:
    one, two = stand_in(ANSWER), stand_in(ANSWER)
    entries = (ModelEntry("m", "m", server_at(one.port)), ModelEntry("n", "n", server_at(two.port)))
    gateway = gateway_to(None, models=entries, routing=RoutingSettings(fallbacks={"m": ("n",)}))
    answer = await gateway.ask("POST", "/server/drain", body={"server": name_of(one)})
    assert answer.json["warnings"] == [
        "No other server of `m` gets requests: its fallbacks are asked in its place (n)."
    ]
    assert (await complete(gateway)).status == 200
    assert (requests_at(one), requests_at(two)) == (0, 1)


@pytest_twisted.ensureDeferred
async def test_an_operator_reaches_a_drained_server_by_name(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    await gateway.ask("POST", "/server/drain", body={"server": name_of(one)})
    assert (await complete(gateway, X_vLLM_Passthrough_Server=name_of(one))).status == 200
    assert (requests_at(one), requests_at(two)) == (1, 0)


@pytest_twisted.ensureDeferred
async def test_a_request_that_waits_goes_elsewhere_or_is_refused_at_once(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet(None, server=lambda port: capped(port, 1, queue=60.0))
    busy = [await gateway.send(COMPLETION) for _ in range(2)]
    for server in (one, two):
        await (await server.connection()).until_received(b"/v1/completions")
    waiting = await gateway.send(COMPLETION)
    await waiting.next_turn()
    assert (await listed(gateway))[name_of(one)]["queued"] == 1
    for server in (one, two):
        await gateway.ask("POST", "/server/drain", body={"server": name_of(server)})
    await waiting.until_received(b"no_healthy_upstream")
    for server, wire in ((one, busy[0]), (two, busy[1])):
        (await server.connection()).send(ANSWER)
        await wire.until_received(b"choices")


@pytest_twisted.ensureDeferred
async def test_a_drain_holds_after_a_restart_and_in_every_gateway_of_the_database(
    fleet: Callable[..., Fleet], gateway_to: Any, reactor: Any
) -> None:
    one, _two, gateway = fleet()
    await gateway.ask("POST", "/server/drain", body={"server": name_of(one), "reason": "memory"})
    again = gateway_to(None, models=gateway.settings.models, database_url=gateway.settings.database_url)
    assert (await listed(again))[name_of(one)]["drained"]["reason"] == "memory"
    assert (await complete(again)).status == 200
    assert requests_at(one) == 0
    # whichever gateway of the database undrains it
    await again.ask("POST", "/server/undrain", body={"server": name_of(one)})
    gateway.pass_time(1.0)
    await eventually(reactor, lambda: not any(state.rests for state in gateway.service.wiring.servers))


@pytest_twisted.ensureDeferred
async def test_each_act_is_in_the_audit_log_with_its_servers(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet(whole(b'{"status":"sleeping"}'))
    two.answer = whole(b"no", status="500 Internal Server Error")
    await gateway.ask("POST", "/vllm/sleep?level=2", body=b"")
    await gateway.ask("POST", "/vllm/wake_up", headers={"X-vLLM-Passthrough-Server": name_of(one)}, body=b"")
    entries: list[dict[str, Any]] = []
    for _ in range(500):
        # the acts do not wait for the database
        entries = (await gateway.ask("GET", "/audit/list?object_type=server&sort_order=asc")).json["audit_logs"]
        if len(entries) == 3:
            break
    assert [(each["action"], each["actor"], each["object_id"], each["after"]) for each in entries] == [
        ("server/sleep", "master", name_of(one), {"status": 200, "query": "level=2"}),
        ("server/sleep", "master", name_of(two), {"status": 500, "query": "level=2"}),
        ("server/wake_up", "master", name_of(one), {"status": 200}),
    ]
    key = (await gateway.ask("POST", "/key/generate", body={})).json["key"]
    refused = await gateway.ask("POST", "/vllm/sleep", key, body=b"")
    assert refused.status == 403
    assert (await gateway.ask("GET", "/audit/list?object_type=server")).json["total"] == 3


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_known_is_refused_with_the_names_there_are(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    answer = await gateway.ask("POST", "/server/drain", body={"server": "gpu-9:8000"})
    assert answer.status == 404
    assert f"There are: {name_of(one)}, {name_of(two)}." in answer.error["message"]


@pytest_twisted.ensureDeferred
async def test_the_list_tells_the_models_and_the_errors_of_each_server(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    two.answer = whole(b"no", status="503 Service Unavailable")
    for _ in range(2):
        assert (await complete(gateway)).status == 200
    rows = await listed(gateway)
    assert list(rows) == [name_of(one), name_of(two)]
    assert [each["model_name"] for each in rows[name_of(one)]["models"]] == ["m"]
    assert rows[name_of(one)]["models"][0]["other_servers"] == 1
    assert rows[name_of(one)]["errors"] == {}
    assert rows[name_of(two)]["errors"] == {"status_503": 1}
    assert rows[name_of(one)]["served_models"] == ["m", "lora"]
    assert rows[name_of(one)]["address"] == f"http://{name_of(one)}"
    raw = request_bytes("GET", "/server/list?model=other")
    wire = await gateway.send(raw)
    await wire.until_received(b'"count":0')
