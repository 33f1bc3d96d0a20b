"""Stored responses of administrators follow their server, also where their ids do not tell it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import HOST, request_bytes, server_at
from tests.end_to_end.response_store import ResponseStore
from twisted_vllm.config.settings import ModelEntry, RoutingSettings
from twisted_vllm.upstreams.response_locator import TIMEOUT

RESPONSES = "/vllm/v1/responses"
#: a clock that nobody advances sends no health checks
Fleet = tuple[list[ResponseStore], Any]


@pytest.fixture
def fleet(stand_in: Any, gateway_to: Any) -> Callable[..., Fleet]:
    """Return two servers of one model, and a gateway in front of both; more gateways if servers are given."""

    def make(servers: list[ResponseStore] | None = None, **settings: Any) -> Fleet:
        servers = servers or [ResponseStore(stand_in()) for _ in range(2)]
        entries = tuple(ModelEntry("m", "m", server_at(each.port)) for each in servers)
        routing = RoutingSettings(routing_strategy="round-robin")
        return servers, gateway_to(None, models=entries, routing=routing, **settings)

    return make


async def create(gateway: Any, **fields: Any) -> str:
    body = {"model": "m", "input": "hi", **fields}
    if fields.get("stream"):
        # the server's stream does not end
        wire = await gateway.send(request_bytes("POST", RESPONSES, body=body))
        await wire.until_received(b"output_text.delta")
        wire.close()
        return str(wire.received.decode().partition('"id": "')[2].partition('"')[0])
    answer = await gateway.ask("POST", RESPONSES, body=body)
    assert answer.status == 200, answer.body
    return str(answer.json["id"])


def on(servers: list[ResponseStore], response_id: str) -> tuple[ResponseStore, ResponseStore]:
    """Return the server that has a response, and the other."""
    here, other = sorted(servers, key=lambda each: response_id not in each.responses)
    assert response_id in here.responses
    assert response_id not in other.responses
    return here, other


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("master_key", ["master", "none"])
@pytest_twisted.ensureDeferred
async def test_a_response_that_passed_is_asked_of_its_server_alone(
    fleet: Callable[..., Fleet], stream: bool, master_key: str
) -> None:
    servers, gateway = fleet(
        **({} if master_key == "master" else {"master_key": None, "allowed_hosts": ("gateway.example",)})
    )
    made = [await create(gateway, stream=stream) for _ in range(4)]
    assert [len(each.responses) for each in servers] == [2, 2]
    for each in servers:
        each.requests.clear()
    for response_id in made:
        here, other = on(servers, response_id)
        assert (await gateway.ask("GET", f"{RESPONSES}/{response_id}")).json["id"] == response_id
        assert (await gateway.ask("POST", f"{RESPONSES}/{response_id}/cancel")).json["status"] == "cancelled"
        continued = await create(gateway, previous_response_id=response_id)
        assert continued in here.responses
        paths = [path for _, path in here.requests]
        assert paths == [f"/v1/responses/{response_id}", f"/v1/responses/{response_id}/cancel", "/v1/responses"]
        assert other.requests == []
        here.requests.clear()


@pytest_twisted.ensureDeferred
async def test_a_response_that_did_not_pass_is_asked_of_all_servers_once(fleet: Callable[..., Fleet]) -> None:
    servers, before = fleet()
    made = [await create(before) for _ in range(2)]
    _, gateway = fleet(servers)
    for response_id in made:
        here, other = on(servers, response_id)
        for each in servers:
            each.requests.clear()
        cancelled = await gateway.ask("POST", f"{RESPONSES}/{response_id}/cancel")
        assert cancelled.json["status"] == "cancelled"
        assert other.requests == [("GET", f"/v1/responses/{response_id}")]
        assert (await gateway.ask("GET", f"{RESPONSES}/{response_id}")).status == 200
        assert (await create(gateway, previous_response_id=response_id)) in here.responses
        assert len(other.requests) == 1
        assert here.requests == [
            ("GET", f"/v1/responses/{response_id}"),
            ("POST", f"/v1/responses/{response_id}/cancel"),
            ("GET", f"/v1/responses/{response_id}"),
            ("POST", "/v1/responses"),
        ]


@pytest_twisted.ensureDeferred
async def test_a_response_that_no_server_has_is_vllm_s_own_404(fleet: Callable[..., Fleet]) -> None:
    servers, gateway = fleet()
    for method, path in (("GET", "resp_none"), ("POST", "resp_none/cancel")):
        answer = await gateway.ask(method, f"{RESPONSES}/{path}")
        assert answer.status == 404
        assert answer.json["error"]["message"] == "Response with id 'resp_none' not found."
        assert answer.header("x-vllm-passthrough-error") is None
    body = {"model": "m", "input": "hi", "previous_response_id": "resp_none"}
    assert (await gateway.ask("POST", RESPONSES, body=body)).status == 404
    # asked first, and then the request itself
    assert sum(len(each.requests) for each in servers) == 9


@pytest_twisted.ensureDeferred
async def test_a_frozen_server_does_not_hide_the_response_of_another(fleet: Callable[..., Fleet]) -> None:
    servers, before = fleet()
    made = [await create(before) for _ in range(2)]
    _, gateway = fleet(servers)
    here, other = on(servers, made[0])
    other.mute = True
    assert (await gateway.ask("GET", f"{RESPONSES}/{made[0]}")).json["id"] == made[0]
    # what is on no server that answers may be on the one that does not
    came = len(here.requests)
    wire = await gateway.send(request_bytes("GET", f"{RESPONSES}/{made[1]}"))
    while len(here.requests) == came:
        await wire.next_turn()
    gateway.clock.advance(TIMEOUT)
    await wire.until_received(b"response_not_located")
    assert wire.received.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in wire.received


@pytest_twisted.ensureDeferred
async def test_one_server_is_never_asked_before(stand_in: Any, gateway_to: Any) -> None:
    server = ResponseStore(stand_in())
    gateway = gateway_to(server.port)
    assert (await gateway.ask("GET", f"{RESPONSES}/resp_none")).status == 404
    assert len(server.requests) == 1


@pytest_twisted.ensureDeferred
async def test_a_background_response_is_followed_on_its_server(fleet: Callable[..., Fleet]) -> None:
    servers, gateway = fleet()
    made = [await create(gateway, background=True) for _ in range(2)]
    places = [on(servers, response_id) for response_id in made]
    for each in servers:
        each.requests.clear()
    for response_id, (here, _) in zip(made, places, strict=True):
        here.finish(response_id)
    gateway.clock.advance(2.0)
    wire = await gateway.connect()
    while not all(here.requests for here, _ in places):
        await wire.next_turn()
    for response_id, (here, _) in zip(made, places, strict=True):
        assert here.requests == [("GET", f"/v1/responses/{response_id}")]


@pytest.mark.parametrize("virtual", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_response_is_not_continued_on_another_server(fleet: Callable[..., Fleet], virtual: bool) -> None:
    servers, gateway = fleet()
    options = {"key": await gateway.make_key()} if virtual else {}
    body = {"model": "m", "input": "hi"}
    made = (await gateway.ask("POST", RESPONSES, body=body, **options)).json["id"]
    here, other = on(servers, made)
    [state] = [state for state in gateway.service.wiring.servers if state.server.port == here.port]
    state.breaker.declare_dead(gateway.clock.seconds(), "refused", 1e9)
    answer = await gateway.ask("POST", RESPONSES, body={**body, "previous_response_id": made}, **options)
    assert (answer.status, answer.error["code"]) == (503, "no_healthy_upstream")
    assert other.requests == []


@pytest_twisted.ensureDeferred
async def test_a_response_whose_server_left_says_so_to_its_owner(fleet: Callable[..., Fleet]) -> None:
    servers, gateway = fleet()
    owner, other = await gateway.make_key(), await gateway.make_key()
    body = {"model": "m", "input": "hi"}
    made = (await gateway.ask("POST", RESPONSES, owner, body=body)).json["id"]
    own = await create(gateway)
    _, stays = on(servers, made)
    entries = tuple(entry for entry in gateway.settings.models if entry.server.port == stays.port)
    _, apply = gateway.service.wiring.prepare(attrs.evolve(gateway.settings, models=entries))
    apply()
    for method, path in (("GET", made), ("POST", f"{made}/cancel")):
        answer = await gateway.ask(method, f"{RESPONSES}/{path}", owner)
        assert (answer.status, answer.error["code"]) == (404, "response_not_found")
        assert "no longer configured" in answer.error["message"]
        unknown = await gateway.ask(method, f"{RESPONSES}/{path}", other)
        assert "not found" in unknown.error["message"]
    answer = await gateway.ask("POST", RESPONSES, owner, body={**body, "previous_response_id": made})
    assert answer.error["code"] == "response_not_found"
    # of an administrator's, whatever was learned, the server that is left decides
    assert (await gateway.ask("GET", f"{RESPONSES}/{own}")).status == (200 if own in stays.responses else 404)
    assert (await gateway.ask("POST", RESPONSES, owner, body=body)).status == 200


@pytest_twisted.ensureDeferred
async def test_a_named_server_is_asked_whatever_was_learned(fleet: Callable[..., Fleet]) -> None:
    servers, gateway = fleet()
    made = await create(gateway)
    _, other = on(servers, made)
    headers = {"X-vLLM-Passthrough-Server": f"127.0.0.1:{other.port}"}
    assert (await gateway.ask("GET", f"{RESPONSES}/{made}", headers=headers)).status == 404
    assert other.requests[-1] == ("GET", f"/v1/responses/{made}")


@pytest.mark.parametrize("caller", ["master", "key"])
@pytest_twisted.ensureDeferred
async def test_what_continues_a_response_of_a_drained_server_still_goes_there(
    fleet: Callable[..., Fleet], caller: str
) -> None:
    servers, gateway = fleet()
    key = None if caller == "master" else await gateway.make_key()

    async def ask(method: str, path: str, **options: Any) -> Any:
        return await gateway.ask(method, f"{RESPONSES}{path}", **({} if key is None else {"key": key}), **options)

    made = (await ask("POST", "", body={"model": "m", "input": "hi"})).json["id"]
    [here] = [each for each in servers if each.requests]
    name = f"{HOST}:{here.port}"
    assert (await gateway.ask("POST", "/server/drain", body={"server": name})).status == 200
    here.requests.clear()
    for _ in range(4):
        assert (await ask("POST", "", body={"model": "m", "input": "hi"})).status == 200
    assert here.requests == [], "what is new goes elsewhere"
    continued = await ask("POST", "", body={"model": "m", "input": "more", "previous_response_id": made})
    assert continued.status == 200, continued.body
    assert (await ask("GET", f"/{made}")).status == 200
    assert (await ask("POST", f"/{made}/cancel")).status == 200
    assert [method for method, _ in here.requests] == ["POST", "GET", "POST"]
