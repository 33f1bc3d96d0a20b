"""A whole gateway whose clients know no ``/vllm``: LiteLLM's, OpenAI's, Azure's and Anthropic's paths."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import succeed

from tests.end_to_end.end_to_end_harness import (
    MASTER_KEY,
    SWITCHING_PROTOCOLS,
    Gateway,
    StandIn,
    handshake,
    parse_head,
    request_bytes,
    server_at,
)
from tests.end_to_end.ledger_harness import ANSWER, rows_in
from tests.end_to_end.messages import EVENT_STREAM, LAST, OK, chunk, whole
from twisted_vllm.admin.app import ROUTES as ADMIN_ROUTES
from twisted_vllm.api_routes import ROUTES, ModelPlace
from twisted_vllm.config.settings import LedgerSettings, ModelEntry
from twisted_vllm.mounts import is_at_root

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
NAMED = ["/engines/{}/chat/completions", "/v1/engines/{}/chat/completions", "/openai/deployments/{}/chat/completions"]

FORM = "multipart/form-data; boundary=xYz"
FILE = b'--xYz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
MODEL_PART = b'--xYz\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
END = b"\r\n--xYz--\r\n"


def sent(server: StandIn, number: int = -1) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Return the request line that a server got, the headers by lower-case name, and the body."""
    received = server.connections[number].received
    line, pairs = parse_head(received)
    return line, {name.lower(): value for name, value in pairs}, received.partition(b"\r\n\r\n")[2]


def entries(*names: str, port: int) -> tuple[ModelEntry, ...]:
    return tuple(ModelEntry(name, f"{name}-upstream", server_at(port)) for name in names)


@pytest.fixture
def server(stand_in: Any) -> Any:
    return stand_in(OK)


@pytest.mark.parametrize("row", [row for row in ROUTES if is_at_root(row)], ids=lambda row: row.path)
@pytest_twisted.ensureDeferred
async def test_an_inference_route_at_the_root_is_the_one_below_vllm(row: Any, server: Any, gateway_to: Any) -> None:
    gateway = gateway_to(server.port)
    method = row.methods[0].decode()
    path = row.path.replace("{id}", "resp_0a1b")
    body = CHAT if method == "POST" else None
    refused = await gateway.ask(method, path, None, body=body)
    assert (refused.status, refused.error["code"]) == (401, "missing_api_key")
    requests = []
    for target in (f"/vllm{path}?a=%2F&a=+", f"{path}?a=%2F&a=+"):
        assert (await gateway.ask(method, target, headers={"X-Request-Id": "1"}, body=body)).status == 200
        # on /invocations the server is asked for its models, once
        received = [each.received for each in server.connections if method.encode() + b" /" in each.received]
        requests.append(received[-1])
        for each in server.connections:
            each.received = b""
    assert requests[0] == requests[1]
    assert requests[0].startswith(f"{method} {path}?a=%2F&a=+ HTTP/1.1\r\n".encode())
    below, at_root = gateway.request_lines()[-2:]
    assert below["route"] == at_root["route"] == row.path


@pytest.mark.parametrize("template", NAMED)
@pytest_twisted.ensureDeferred
async def test_the_path_s_model_decides_whatever_the_body_names(template: str, server: Any, gateway_to: Any) -> None:
    gateway = gateway_to(None, models=entries("org/m", "secret", port=server.port))
    key = await gateway.make_key(models=["org/*"])
    bodies: list[dict[str, Any]] = [
        CHAT,
        {"messages": []},
        {**CHAT, "model": "secret"},
        {**CHAT, "model": None},
        {**CHAT, "model": "nobody"},
    ]
    for model in ("org/m", "org%2Fm", "%6frg/m"):
        for body in bodies:
            target = template.format(model) + "?api-version=2024-10-21"
            answer = await gateway.ask("POST", target, None, headers={"api-key": key}, body=body)
            assert answer.status == 200, answer.body
            line, _, content = sent(server)
            assert line == b"POST /v1/chat/completions?api-version=2024-10-21 HTTP/1.1"
            assert json.loads(content) == {**body, "model": "org/m-upstream"}
            server.connections[0].received = b""
    # the body's model is no way around the permission, and no way to be refused
    answer = await gateway.ask("POST", template.format("secret"), key, body={**CHAT, "model": "org/m"})
    assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
    lines = gateway.request_lines()
    assert {line["model"] for line in lines if line["status"] == 200 and line["route"] == "/v1/chat/completions"} == {
        "org/m"
    }


@pytest_twisted.ensureDeferred
async def test_permissions_and_the_ledger_know_the_server_s_route_alone(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port, ledger=LedgerSettings())
    key = await gateway.make_key(allowed_routes=["/v1/chat/completions"])
    paths = ("/v1/chat/completions", "/chat/completions", "/openai/v1/chat/completions", "/engines/m/chat/completions")
    for path in paths:
        assert (await gateway.ask("POST", path, key, body=CHAT)).status == 200
    for path in ("/v1/completions", "/engines/m/completions"):
        assert (await gateway.ask("POST", path, key, body=CHAT)).error["code"] == "route_not_allowed"
    await gateway.stop()
    rows = [row for found in rows_in(gateway.database_file).values() for row in found]
    assert [(row["route"], row["model"], row["total_tokens"]) for row in rows] == [("/v1/chat/completions", "m", 7)] * 4


@pytest_twisted.ensureDeferred
async def test_limits_and_aliases_are_those_of_the_path_s_model(server: Any, gateway_to: Any) -> None:
    gateway = gateway_to(None, models=entries("a", "b", port=server.port))
    key = await gateway.make_key(aliases={"mine": "a"}, model_rpm_limit={"a": 1})
    for body_model, status in (("b", 200), ("b", 429)):
        answer = await gateway.ask("POST", "/engines/mine/completions", key, body={"model": body_model, "prompt": "x"})
        assert answer.status == status
    assert json.loads(sent(server)[2])["model"] == "a-upstream"
    answer = await gateway.ask("POST", "/engines/b/completions", key, body={"model": "a", "prompt": "x"})
    assert answer.status == 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b'{"model": "m", "model": "m"}'),
        ("application/x-unknown", b"abc"),
        ("application/json", json.dumps(CHAT).encode("utf-16")),
        (FORM, FILE + b"x"),
    ],
)
@pytest.mark.parametrize("key", ["master", "virtual"])
@pytest_twisted.ensureDeferred
async def test_a_body_that_might_name_another_model_than_the_path_reaches_no_server(
    key: str, kind: str, body: bytes, server: Any, gateway_to: Any
) -> None:
    gateway = gateway_to(server.port)
    caller = MASTER_KEY if key == "master" else await gateway.make_key()
    target = "/openai/deployments/m/audio/transcriptions"
    answer = await gateway.ask("POST", target, caller, headers={"Content-Type": kind}, body=body)
    if answer.status == 200:
        # vLLM certainly refuses it
        assert (kind, sent(server)[2]) == ("application/x-unknown", body)
    else:
        assert (answer.status, answer.error["code"]) == (400, "model_undetermined")
        assert server.connections == []


@pytest.mark.parametrize("size", [100, 3_000_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("own", [None, "whisper", "other"])
@pytest_twisted.ensureDeferred
async def test_a_form_below_a_deployment_names_its_model_at_the_server(
    own: str | None, framing: str, size: int, stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(None)
    gateway = gateway_to(None, models=entries("whisper", port=server.port))
    key = await gateway.make_key(models=["whisper"])
    named = b"" if own is None else MODEL_PART % own.encode()
    form = named + FILE + b"s" * size + END
    headers = {"Content-Type": FORM}
    target = "/openai/deployments/whisper/audio/transcriptions?api-version=2024-10-21"
    if framing == "chunked":
        raw = request_bytes("POST", target, key, headers={**headers, "Transfer-Encoding": "chunked"}) + chunk(form)
        raw += LAST
    else:
        raw = request_bytes("POST", target, key, headers=headers, body=form)
    client = await gateway.send(raw)
    connection = await server.connection()
    await connection.until(lambda: END in connection.received)
    wanted = MODEL_PART % b"whisper-upstream" + FILE + b"s" * size + END
    line, pairs, body = sent(server)
    assert line.startswith(b"POST /v1/audio/transcriptions?api-version=")
    if b"content-length" in pairs:
        assert int(pairs[b"content-length"]) == len(wanted)
        assert body == wanted
    else:
        await connection.until(lambda: connection.received.endswith(LAST))
        pieces = sent(server)[2]
        found = b""
        while pieces:
            length, _, pieces = pieces.partition(b"\r\n")
            found += pieces[: int(length, 16)]
            pieces = pieces[int(length, 16) + 2 :]
        assert found == wanted
    connection.send(OK)
    await client.until_received(b"\r\n\r\nok")


@pytest_twisted.ensureDeferred
async def test_a_stream_passes_and_its_usage_is_counted(stand_in: Any, gateway_to: Any) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n'
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    done = b"data: [DONE]\n\n"
    server = stand_in(EVENT_STREAM + chunk(event) + chunk(usage) + chunk(done) + LAST)
    gateway = gateway_to(server.port)
    for target in ("/v1/chat/completions", "/openai/deployments/m/chat/completions"):
        answer = await gateway.ask("POST", target, body={**CHAT, "stream": True})
        assert answer.body == event + done
        assert json.loads(sent(server, 0)[2])["stream_options"] == {"include_usage": True}
        server.connections[0].received = b""


@pytest.mark.parametrize(
    "target", ["/v1/realtime", "/realtime", "/openai/v1/realtime", "/openai/realtime?deployment=m"]
)
@pytest_twisted.ensureDeferred
async def test_a_web_socket_opens_at_the_root(target: str, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(SWITCHING_PROTOCOLS)
    gateway = gateway_to(server.port)
    client = await gateway.send(handshake(target=target))
    await client.until_received(b"101 Switching")
    assert sent(server)[0].startswith(b"GET /v1/realtime")
    client.send(b"frame")
    connection = await server.connection()
    await connection.until_received(b"frame")
    client.cut()


@pytest_twisted.ensureDeferred
async def test_a_redirect_leads_to_the_gateway_s_root(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    location = f"Location: http://127.0.0.1:{server.port}/v1/completions\r\n"
    server.answer = whole(b"", "307 Temporary Redirect", more=location)
    gateway = gateway_to(server.port)
    at_root = await gateway.ask("POST", "/v1/completions", body=CHAT)
    below = await gateway.ask("POST", "/vllm/v1/completions/", body=CHAT)
    assert (at_root.header("location"), below.header("location")) == ("/v1/completions", "/vllm/v1/completions")


@pytest.mark.parametrize("trusted", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_redirect_has_the_prefix_that_a_trusted_proxy_cut_off(
    trusted: bool, stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(whole(b"", "307 Temporary Redirect", more="Location: /v1/completions\r\n"))
    gateway = gateway_to(server.port, trusted_proxies=(ip_network("127.0.0.0/8"),) if trusted else ())
    cut_off = {"X-Forwarded-Prefix": "/llm"}
    for path, location in (("/v1/completions", "/v1/completions"), ("/vllm/v1/completions/", "/vllm/v1/completions")):
        answer = await gateway.ask("POST", path, headers=cut_off, body=CHAT)
        assert answer.header("location") == ("/llm" if trusted else "") + location
    # the server is asked by its own paths
    assert b"prefix" not in server.received.lower()


@pytest_twisted.ensureDeferred
async def test_a_preflight_and_max_forwards_work_at_the_root(server: Any, gateway_to: Any) -> None:
    gateway = gateway_to(server.port)
    page = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    for target in ("/v1/chat/completions", "/openai/deployments/m/chat/completions"):
        assert (await gateway.ask("OPTIONS", target, None, headers=page)).body == b"ok"
    assert len(server.received.split(b"OPTIONS /v1/chat/completions")) == 3
    answer = await gateway.ask("OPTIONS", "/v1/chat/completions", headers={"Max-Forwards": "0"})
    assert (answer.status, answer.header("allow")) == (204, "POST, OPTIONS")


@pytest.mark.parametrize(
    "target",
    [
        "/v1//chat/completions",
        "/v1/%2e/chat/completions",
        "/v1/../v1/chat/completions",
        "/v1/chat%2Fcompletions",
        "/%76llm/v1/chat/completions",
        "/engines/../v1/chat/completions",
        "/sleep",
        "/v1/load_lora_adapter",
        "/v1/files",
        "/v1/moderations",
        "/v1/images/generations",
        "/v1/batches",
        "/openai/deployments/m/images/generations",
        "/unknown",
    ],
)
@pytest_twisted.ensureDeferred
async def test_any_other_path_at_the_root_is_not_found_and_reaches_no_server(
    target: str, server: Any, gateway_to: Any
) -> None:
    gateway = gateway_to(server.port)
    for key in (MASTER_KEY, await gateway.make_key()):
        answer = await gateway.ask("POST", target, key, body=CHAT)
        assert (answer.status, answer.error["code"]) == (404, "not_found")
        if target in ("/sleep", "/v1/load_lora_adapter"):
            assert f"/vllm{target}" in answer.error["message"]
    assert server.connections == []


@pytest_twisted.ensureDeferred
async def test_the_root_may_be_closed_and_the_answer_says_where_the_route_is(server: Any, gateway_to: Any) -> None:
    gateway = gateway_to(server.port, root_routes=False)
    for target in ("/v1/chat/completions", "/engines/m/chat/completions"):
        answer = await gateway.ask("POST", target, body=CHAT)
        assert (answer.status, answer.error["code"]) == (404, "not_found")
        assert "/vllm/v1/chat/completions" in answer.error["message"]
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)).status == 200
    await reload_with(gateway, root_routes=True)
    assert (await gateway.ask("POST", "/v1/chat/completions", body=CHAT)).status == 200
    await reload_with(gateway, root_routes=False)
    assert (await gateway.ask("POST", "/v1/chat/completions", body=CHAT)).status == 404


async def reload_with(gateway: Gateway, **settings: Any) -> None:
    _, apply = gateway.service.wiring.prepare(attrs.evolve(gateway.settings, **settings))
    apply()
    await succeed(None)


@pytest_twisted.ensureDeferred
async def test_no_route_of_the_admin_api_is_shadowed(server: Any, gateway_to: Any) -> None:
    gateway = gateway_to(server.port)
    for route in ADMIN_ROUTES:
        for value in ("x", "completions", "v1", "chat%2Fcompletions", "responses"):
            path = "/".join(value if "<" in segment else segment for segment in route.path.split("/"))
            answer = await gateway.ask(route.method, path, body={} if route.method != "GET" else None)
            assert answer.header("server") == "twisted-vllm", path
    # one of them collects the metrics of all servers
    assert all(each.received.startswith(b"GET /metrics ") for each in server.connections)


def test_what_names_its_model_in_the_body_can_name_it_in_the_path() -> None:
    assert len([row for row in ROUTES if is_at_root(row) and row.model is ModelPlace.BODY]) > 15
