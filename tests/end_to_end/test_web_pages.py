"""A whole gateway in open mode, and the requests that a web page can make a browser send."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import MASTER_KEY, Gateway, handshake, request_bytes
from tests.end_to_end.messages import OK, whole

#: what a simple request (Fetch §2.2.2) may have as its type, without a preflight
FORM_TYPES = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
PAGE = "https://attacker.example"
ROUTES = ["/key/list", "/vllm/v1/models", "/metrics", "/", "/openapi.json", "/nothing", "/spend/logs", "/audit/list"]
OWN = ("cross-origin-resource-policy", "same-origin"), ("x-content-type-options", "nosniff")


def here(gateway: Gateway, name: str = "localhost") -> str:
    return f"{name}:{gateway.port}"


@pytest.mark.parametrize("path", ROUTES)
@pytest_twisted.ensureDeferred
async def test_a_page_that_rebinds_its_name_reads_nothing(path: str, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port, master_key=None)
    # twice: the second comes from the caches
    for _ in range(2):
        answer = await gateway.ask("GET", path, None, headers={"Host": here(gateway, "attacker.example")})
        assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")
    assert server.connections == []
    for name in ("localhost", "127.0.0.1", "[::1]"):
        answer = await gateway.ask("GET", path, None, headers={"Host": here(gateway, name)})
        assert answer.status == (404 if path == "/nothing" else 200)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("told", [{"Origin": PAGE}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
@pytest_twisted.ensureDeferred
async def test_a_page_of_another_origin_reads_nothing(
    path: str, told: dict[str, str], stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port, master_key=None)
    answer = await gateway.ask("GET", path, None, headers={"Host": here(gateway), **told})
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
    assert server.connections == []


@pytest.mark.parametrize(
    "path",
    [
        "/key/generate",
        "/key/delete",
        "/user/new",
        "/vllm/v1/completions",
        "/v1/completions",
        "/engines/m/completions",
        "/vllm/sleep",
    ],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
@pytest_twisted.ensureDeferred
async def test_a_page_of_another_origin_acts_on_nothing(path: str, method: str, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port, master_key=None)
    for kind in (*FORM_TYPES, "application/json"):
        headers = {"Host": here(gateway), "Origin": PAGE, "Content-Type": kind, "Access-Control-Request-Method": "POST"}
        answer = await gateway.ask(method, path, None, headers=headers, body=b"{}" if method == "POST" else None)
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
        assert answer.header("access-control-allow-origin") is None
    assert server.connections == []


@pytest_twisted.ensureDeferred
async def test_a_page_of_another_origin_opens_no_web_socket(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port, master_key=None)
    answer = await gateway.answer_to(handshake(None, Host=here(gateway), Origin=PAGE))
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
    assert server.connections == []
    client = await gateway.send(handshake(None, Host=here(gateway), Origin=f"http://{here(gateway)}"))
    await server.connection()
    client.cut()


@pytest_twisted.ensureDeferred
async def test_in_open_mode_an_administrative_post_is_json(gateway_to: Any) -> None:
    gateway = gateway_to(None, master_key=None)
    for kind in (*FORM_TYPES, None):
        headers = {"Host": here(gateway)} | ({} if kind is None else {"Content-Type": kind})
        raw = request_bytes("POST", "/key/generate", None, headers=headers)
        answer = await gateway.answer_to(raw.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n{}"))
        assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")
    answer = await gateway.ask("POST", "/key/generate", None, headers={"Host": here(gateway)}, body={})
    assert answer.status == 200
    assert len((await gateway.ask("GET", "/key/list", None, headers={"Host": here(gateway)})).json["keys"]) == 1


@pytest_twisted.ensureDeferred
async def test_the_health_routes_answer_anyone(gateway_to: Any) -> None:
    gateway = gateway_to(None, master_key=None)
    headers = {"Host": "10.0.0.7", "Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
    for path in ("/health/liveliness", "/health/liveness", "/health/readiness"):
        assert (await gateway.ask("GET", path, None, headers=headers)).status == 200


@pytest_twisted.ensureDeferred
async def test_the_operator_names_hosts_and_origins(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(
        stand_in(whole(b"{}")).port,
        master_key=None,
        allow_anonymous=True,
        allowed_hosts=("gateway",),
        allowed_origins=("https://chat.example",),
    )
    for host in ("gateway:4000", "192.0.2.7:4000", "localhost"):
        for path in ("/vllm/v1/models", "/key/list"):
            answer = await gateway.ask("GET", path, None, headers={"Host": host, "Origin": "https://chat.example"})
            assert answer.status == 200
    refused = await gateway.ask("GET", "/key/list", None, headers={"Host": "other:4000"})
    assert "passthrough.allowed_hosts" in refused.error["message"]


@pytest.mark.parametrize("path", ["/key/list", "/", "/nothing", "/health/liveliness", "/metrics", "/vllm/v1/models"])
@pytest_twisted.ensureDeferred
async def test_no_page_can_embed_what_the_gateway_itself_answers(path: str, gateway_to: Any) -> None:
    gateway = gateway_to(None)
    for key in (MASTER_KEY, "sk-wrong", None):
        answer = await gateway.ask("GET", path, key)
        for name, value in OWN:
            assert answer.header(name) == value
        assert answer.header("access-control-allow-origin") is None
    malformed = await gateway.answer_to(b"GET / HTTP/1.1\r\n\r\n")
    assert malformed.header("x-content-type-options") == "nosniff"


@pytest_twisted.ensureDeferred
async def test_the_servers_answers_stay_as_they_are(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(b"{}")).port, allowed_origins=("https://console.example",))
    answer = await gateway.ask("GET", "/vllm/v1/models", headers={"Origin": "https://console.example"})
    assert answer.status == 200
    for name in ("cross-origin-resource-policy", "x-content-type-options", "access-control-allow-origin", "vary"):
        assert answer.header(name) is None


@pytest_twisted.ensureDeferred
async def test_pages_of_allowed_origins_use_the_admin_api_and_read_errors(gateway_to: Any) -> None:
    console = "https://console.example"
    gateway = gateway_to(None, allowed_origins=(console,))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = await gateway.ask("OPTIONS", "/key/generate", None, headers={"Origin": console, **asked})
    assert (preflight.status, preflight.body) == (200, b"")
    assert preflight.header("access-control-allow-origin") == console
    assert preflight.header("access-control-allow-methods") == "GET, HEAD, POST, PATCH"
    assert preflight.header("access-control-allow-headers") == "authorization,content-type"
    made = await gateway.ask("POST", "/key/generate", headers={"Origin": console}, body={})
    wrong = await gateway.ask("GET", "/key/list", "sk-wrong", headers={"Origin": console})
    below = await gateway.ask("GET", "/vllm/v1/models", "sk-wrong", headers={"Origin": console})
    large = await gateway.ask("POST", "/key/generate", headers={"Origin": console}, body={"x": "x" * 1_100_000})
    assert [each.status for each in (made, wrong, below, large)] == [200, 401, 401, 413]
    for answer in (made, wrong, below, large):
        assert answer.header("access-control-allow-origin") == console
        assert "x-request-id" in (answer.header("access-control-expose-headers") or "")
        assert answer.header("vary") == "Origin"

    other = await gateway.ask("OPTIONS", "/key/generate", None, headers={"Origin": PAGE, **asked})
    assert (other.status, other.header("access-control-allow-origin")) == (405, None)
    read = await gateway.ask("GET", "/key/list", headers={"Origin": PAGE})
    assert (read.status, read.header("access-control-allow-origin")) == (200, None)
