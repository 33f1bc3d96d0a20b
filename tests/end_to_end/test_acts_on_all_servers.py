"""Acts of the operator go to all servers, or to those that a header names; so does what names no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import HOST, capped, lower, parse_head, request_bytes, server_at
from tests.end_to_end.ledger_harness import rows_in
from tests.end_to_end.messages import whole
from twisted_vllm.config.settings import ModelEntry, RoutingSettings

SLEEPING = b'{"status":"sleeping"}'
SERVER, MODEL = "X-vLLM-Passthrough-Server", "x-vllm-passthrough-model"
#: the closed port of a server that is down
DOWN = 1


class Scripted:
    """A server that answers each request alike, and keeps what came.

    Attributes:
        requests: the first line, the headers and the body of each request.
    """

    def __init__(self, stand_in: Any, answer: bytes) -> None:
        self.answer: bytes | None = answer
        self.requests: list[tuple[str, dict[bytes, bytes], bytes]] = []
        self.port = stand_in.port
        self.name = f"{HOST}:{self.port}"
        self._read: dict[Any, int] = {}
        stand_in.respond = self._respond

    @property
    def lines(self) -> list[str]:
        return [line for line, _, _ in self.requests]

    def _respond(self, wire: Any) -> None:
        start = self._read.get(wire, 0)
        head, end, body = wire.received[start:].partition(b"\r\n\r\n")
        line, pairs = parse_head(head)
        length = int(lower(pairs).get(b"content-length", b"0"))
        if not end or len(body) < length:
            return
        self._read[wire] = start + len(head) + 4 + length
        self.requests.append((line.decode().removesuffix(" HTTP/1.1"), lower(pairs), body[:length]))
        if self.answer is not None:
            wire.send(self.answer)


Fleet = tuple[Scripted, Scripted, Any]


@pytest.fixture
def fleet(stand_in: Any, gateway_to: Any) -> Callable[..., Fleet]:
    """Return the servers of the models ``m`` and ``n``, and a gateway in front of both."""

    def make(
        first: bytes = whole(SLEEPING), second: bytes = whole(SLEEPING), default: int | None = None, **settings: Any
    ) -> Fleet:
        one, two = (Scripted(stand_in(), answer) for answer in (first, second))
        entries = (ModelEntry("m", "m", server_at(one.port)), ModelEntry("n", "own-n", server_at(two.port)))
        routing = RoutingSettings(routing_strategy="round-robin")
        return one, two, gateway_to(default, **{"models": entries, "routing": routing, **settings})

    return make


def told(answer: Any) -> list[tuple[str, int | None, Any]]:
    assert answer.header("content-type") == "application/json"
    return [(each["server"], each["status"], each["body"]) for each in answer.json["servers"]]


@pytest_twisted.ensureDeferred
async def test_an_act_goes_to_all_servers_and_each_answer_is_told(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    answer = await gateway.ask("POST", "/vllm/sleep?level=2&x=%2F", body=b"")
    assert answer.status == 200
    assert told(answer) == [(one.name, 200, {"status": "sleeping"}), (two.name, 200, {"status": "sleeping"})]
    assert one.lines == two.lines == ["POST /sleep?level=2&x=%2F"]
    assert one.requests[0][1][b"x-request-id"] == two.requests[0][1][b"x-request-id"]
    assert b"accept-encoding" not in one.requests[0][1]
    [line] = [each for each in gateway.request_lines() if each["route"] == "/sleep"]
    assert (line["status"], line["outcome"], line["server"]) == (200, "completed", "")


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/load_lora_adapter", "/update_weights"])
@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
@pytest_twisted.ensureDeferred
async def test_every_server_gets_the_whole_body(fleet: Callable[..., Fleet], path: str, size: int) -> None:
    one, two, gateway = fleet(whole(b"Success", kind="text/plain"))
    body = b'{"lora_name":"%b"}' % (b"x" * size)
    answer = await gateway.ask(
        "POST", f"/vllm{path}", headers={"Content-Type": "application/json", "Accept-Encoding": "gzip"}, body=body
    )
    assert told(answer)[0] == (one.name, 200, "Success")
    for each in (one, two):
        [(_, headers, received)] = each.requests
        assert received == body
        assert headers[b"content-type"] == b"application/json"
        assert b"accept-encoding" not in headers


@pytest_twisted.ensureDeferred
async def test_a_chunked_body_and_a_large_form_reach_every_server(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    raw = request_bytes("POST", "/vllm/update_weights", headers={"Transfer-Encoding": "chunked"})
    wire = await gateway.send(raw)
    for _ in range(30):
        wire.send(b"%x\r\n%b\r\n" % (10_000, b"y" * 10_000))
        await wire.next_turn()
    wire.send(b"0\r\n\r\n")
    await wire.until_received(SLEEPING)
    assert one.requests[0][2] == two.requests[0][2] == b"y" * 300_000
    form = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n%b\r\n--b--\r\n' % (b"z" * 2_000_000)
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert (await gateway.ask("POST", "/vllm/pause", headers=headers, body=form)).status == 200
    assert one.requests[1][2] == two.requests[1][2] == form


@pytest_twisted.ensureDeferred
async def test_half_a_success_is_an_error_that_tells_each_answer(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet(second=whole(b'{"error":{"message":"no"}}', "400 Bad Request"))
    answer = await gateway.ask("POST", "/vllm/v1/load_lora_adapter", body={"lora_name": "x"})
    assert answer.status == 502
    assert answer.header("x-vllm-passthrough-error") == answer.json["error"]["code"] == "not_all_servers"
    assert told(answer)[1] == (two.name, 400, {"error": {"message": "no"}})
    assert f"{two.name} did not do /v1/load_lora_adapter" in gateway.log_text()
    [line] = [each for each in gateway.request_lines() if each["route"] == "/v1/load_lora_adapter"]
    assert (line["status"], line["outcome"], line["error"]) == (502, "upstream_failed", "not_all_servers")
    one.answer = two.answer = whole(b'{"error":"both"}', "404 Not Found")
    answer = await gateway.ask("POST", "/vllm/v1/load_lora_adapter", body={"lora_name": "x"})
    assert (answer.status, answer.header("x-vllm-passthrough-error")) == (404, None)


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_down_is_told(fleet: Callable[..., Fleet]) -> None:
    down = ModelEntry("m", "m", server_at(DOWN))
    one, _, _ = fleet()
    _, _, gateway = fleet(models=(down, ModelEntry("n", "n", server_at(one.port))))
    answer = await gateway.ask("POST", "/vllm/reset_prefix_cache", body=b"")
    assert answer.status == 502
    assert answer.json["servers"][0]["error"]["code"] == "upstream_unreachable"
    assert answer.json["servers"][1]["status"] == 200


@pytest_twisted.ensureDeferred
async def test_a_frozen_server_is_left_when_it_is_found_dead(fleet: Callable[..., Fleet]) -> None:
    _, two, gateway = fleet()
    two.answer = None
    wire = await gateway.send(request_bytes("POST", "/vllm/sleep", body=b""))
    while not two.requests:
        await wire.next_turn()
    [state] = [state for state in gateway.service.wiring.servers if state.name == two.name]
    for attempt in tuple(state.awaiting):
        attempt.server_died("silent")
    await wire.until_received(b"not_all_servers")
    assert b"does not answer any more" in wire.received


@pytest_twisted.ensureDeferred
async def test_an_act_has_one_row_in_the_ledger(fleet: Callable[..., Fleet]) -> None:
    one, _, gateway = fleet()
    # one server alone, and then both: a row must not name the server of another
    await gateway.ask("POST", "/vllm/sleep", headers={SERVER: one.name}, body=b"")
    await gateway.ask("POST", "/vllm/sleep", body=b"")
    await gateway.stop()
    found = [row for rows in rows_in(gateway.database_file).values() for row in rows]
    assert sorted((row["route"], row["server"], row["status"], row["outcome"]) for row in found) == [
        ("/sleep", "", 200, "completed"),
        ("/sleep", one.name, 200, "completed"),
    ]


@pytest_twisted.ensureDeferred
async def test_a_header_names_the_model_whose_servers_act(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet(second=whole(b"{ }"))
    answer = await gateway.ask("POST", "/vllm/wake_up", headers={MODEL: "n"}, body=b"")
    # one server's answer passes as it came
    assert (answer.status, answer.body) == (200, b"{ }")
    assert (one.lines, two.lines) == ([], ["POST /wake_up"])
    assert MODEL.encode() not in two.requests[0][1]
    answer = await gateway.ask("POST", "/vllm/wake_up", headers={MODEL: "m2"}, body=b"")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


@pytest_twisted.ensureDeferred
async def test_a_misspelt_model_does_not_reach_the_default_server(fleet: Callable[..., Fleet], stand_in: Any) -> None:
    default = Scripted(stand_in(), whole(b"{}"))
    _, _, gateway = fleet(default=default.port)
    answer = await gateway.ask("POST", "/vllm/sleep", headers={MODEL: "misspelt"}, body=b"")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert default.requests == []
    assert len(told(await gateway.ask("POST", "/vllm/sleep", body=b""))) == 3


@pytest_twisted.ensureDeferred
async def test_with_one_server_an_answer_passes_as_it_came(stand_in: Any, gateway_to: Any) -> None:
    raw = b"HTTP/1.1 418 Teapot\r\nX-A: b\r\nContent-Type: text/x\r\nContent-Length: 5\r\n\r\n{ } !"
    one = Scripted(stand_in(), raw)
    gateway = gateway_to(one.port, models=(ModelEntry("m", "m", server_at(one.port)),))
    for headers in ({}, {MODEL: "m"}, {SERVER: one.name}):
        answer = await gateway.ask("POST", "/vllm/sleep", headers=headers, body=b"")
        assert (answer.status, answer.reason, answer.body) == (418, b"Teapot", b"{ } !")
        assert answer.header("x-a") == "b"


@pytest_twisted.ensureDeferred
async def test_a_header_names_the_server_of_any_request(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet(whole(b"one"), whole(b"two"))
    for method, path in (("POST", "/sleep"), ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/unheard/of")):
        for server, body in ((one, b"one"), (two, b"two")):
            answer = await gateway.ask(method, f"/vllm{path}", headers={SERVER: server.name}, body=b"")
            assert (answer.status, answer.body) == (200, body)
            line, headers, _ = server.requests[-1]
            assert line == f"{method} {path}"
            assert SERVER.lower().encode() not in headers
    # without it, what names no model goes to the first entry's server
    assert (await gateway.ask("GET", "/vllm/metrics")).body == b"one"


@pytest_twisted.ensureDeferred
async def test_a_header_names_the_server_of_a_model_that_it_serves(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    entries = tuple(ModelEntry("m", name, server_at(each.port)) for each, name in ((one, "own-1"), (two, "own-2")))
    _, _, gateway = fleet(models=(*entries, ModelEntry("n", "n", server_at(one.port))))
    for _ in range(3):
        for server, name in ((one, b"own-1"), (two, b"own-2")):
            headers = {SERVER: server.name}
            answer = await gateway.ask("POST", "/vllm/v1/completions", headers=headers, body={"model": "m"})
            assert answer.status == 200
            assert b'"model": "%b"' % name in server.requests[-1][2]
    answer = await gateway.ask("POST", "/vllm/v1/completions", headers={SERVER: two.name}, body={"model": "n"})
    assert (answer.status, answer.error["code"]) == (404, "server_not_found")
    assert one.name in answer.error["message"]
    line = next(each for each in gateway.request_lines() if each["route"] == "/v1/completions")
    assert (line["server"], line["model"]) == (one.name, "m")


@pytest_twisted.ensureDeferred
async def test_a_named_server_is_asked_although_it_is_down(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    states = {state.name: state for state in gateway.service.wiring.servers}
    states[two.name].breaker.declare_dead(gateway.clock.seconds(), "refused", 1e9)
    states[one.name].sleeping = True
    refused = await gateway.ask("POST", "/vllm/v1/completions", body={"model": "n"})
    assert (refused.status, refused.error["code"]) == (503, "no_healthy_upstream")
    asleep = await gateway.ask("POST", "/vllm/v1/completions", body={"model": "m"})
    assert (asleep.status, asleep.error["code"]) == (503, "no_healthy_upstream")
    for server, model in ((one, "m"), (two, "n")):
        headers = {SERVER: server.name}
        answer = await gateway.ask("POST", "/vllm/v1/completions", headers=headers, body={"model": model})
        assert answer.status == 200
    assert (await gateway.ask("POST", "/vllm/wake_up", body=b"")).status == 200
    # a sleeping server answers what uses no model
    assert (await gateway.ask("GET", "/vllm/v1/models")).status == 200


@pytest_twisted.ensureDeferred
async def test_what_uses_no_model_does_not_wait_for_those_that_do(fleet: Callable[..., Fleet], stand_in: Any) -> None:
    busy = Scripted(stand_in(), b"")
    busy.answer = None
    _, _, gateway = fleet(models=(ModelEntry("m", "m", capped(busy.port)),))
    for _ in range(2):
        await gateway.send(request_bytes("POST", "/vllm/v1/completions", body={"model": "m"}))
    while not gateway.queued:
        await (await gateway.connect()).next_turn()
    busy.answer = whole(b"{}")
    for method, path in (("GET", "/metrics"), ("POST", "/sleep"), ("POST", "/abort_requests")):
        assert (await gateway.ask(method, f"/vllm{path}", body=b"")).status == 200
    assert gateway.queued == 1


@pytest_twisted.ensureDeferred
async def test_no_other_model_answers_for_a_server(fleet: Callable[..., Fleet]) -> None:
    one, _, _ = fleet()
    entries = (ModelEntry("n", "n", server_at(one.port)),)
    routing = RoutingSettings(routing_strategy="round-robin", default_fallbacks=("n",))
    _, _, gateway = fleet(default=DOWN, models=entries, routing=routing)
    assert (await gateway.ask("POST", "/vllm/v1/completions", body={"model": "x"})).status == 200
    for path in ("/metrics", "/health", "/unheard/of"):
        assert (await gateway.ask("GET", f"/vllm{path}")).status in (502, 503)
    assert len(one.requests) == 1


@pytest_twisted.ensureDeferred
async def test_who_may_name_a_server(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    plain = await gateway.make_key()
    granted = await gateway.make_key(granted_headers=[SERVER])
    for name in (two.name, "unknown"):
        answer = await gateway.ask("GET", "/vllm/metrics", plain, headers={SERVER: name})
        assert (answer.status, answer.error["code"]) == (403, "server_not_allowed")
        assert two.name not in answer.error["message"]
    assert (await gateway.ask("GET", "/vllm/metrics", granted, headers={SERVER: two.name})).status == 200
    assert two.lines == ["GET /metrics"]
    for key, named in ((granted, False), (None, True)):
        options = {} if key is None else {"key": key}
        answer = await gateway.ask("GET", "/vllm/metrics", headers={SERVER: "unknown"}, **options)
        assert (answer.status, answer.error["code"]) == (404, "server_not_found")
        assert (two.name in answer.error["message"]) is named
    assert one.requests == []


@pytest_twisted.ensureDeferred
async def test_a_key_acts_within_its_models_and_sees_no_names(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    free = await gateway.make_key(allowed_routes=["/sleep"])
    bound = await gateway.make_key(allowed_routes=["/sleep"], models=["n"])
    answer = await gateway.ask("POST", "/vllm/sleep", free, body=b"")
    assert [server for server, _, _ in told(answer)] == ["server 1", "server 2"]
    assert one.name.encode() not in answer.body
    answer = await gateway.ask("POST", "/vllm/sleep", bound, body=b"")
    assert (answer.status, answer.error["code"]) == (400, "model_undetermined")
    answer = await gateway.ask("POST", "/vllm/sleep", bound, headers={MODEL: "m"}, body=b"")
    assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
    assert len(one.requests) == 1
    assert (await gateway.ask("POST", "/vllm/sleep", bound, headers={MODEL: "n"}, body=b"")).status == 200
    assert (len(one.requests), len(two.requests)) == (1, 2)


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_ends_the_act_everywhere(fleet: Callable[..., Fleet]) -> None:
    one, two, gateway = fleet()
    one.answer = two.answer = None
    wire = await gateway.send(request_bytes("POST", "/vllm/sleep", body=b""))
    while not (one.requests and two.requests):
        await wire.next_turn()
    wire.cut()
    while not gateway.request_lines():
        await wire.next_turn()
    assert gateway.request_lines()[-1]["outcome"] == "client_disconnected"


@pytest_twisted.ensureDeferred
async def test_all_metrics_come_in_one_scrape(fleet: Callable[..., Fleet]) -> None:
    metrics = b'# TYPE vllm:running gauge\nvllm:running{model_name="m",server="x"} %d.0\n'
    one, two, gateway = fleet(*(whole(metrics % number, kind="text/plain") for number in (1, 2)))
    answer = await gateway.ask("GET", "/metrics/upstreams")
    assert answer.status == 200
    assert answer.body.decode().partition("# TYPE vllm:running")[2] == (
        f' gauge\nvllm:running{{server="{one.name}",model_name="m",exported_server="x"}} 1.0\n'
        f'vllm:running{{server="{two.name}",model_name="m",exported_server="x"}} 2.0\n'
    )
    assert one.lines == two.lines == ["GET /metrics"]
    two.answer = whole(b"down", "503 Service Unavailable")
    gateway.clock.advance(2.0)
    answer = await gateway.ask("GET", "/metrics/upstreams")
    assert f'scrape_up{{server="{two.name}"}} 0\n' in answer.body.decode()
    assert f'scrape_up{{server="{one.name}"}} 1\n' in answer.body.decode()
