"""``general_settings.allowed_ips``: whose address is not listed is served nothing."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.messages import whole

MODELS = "/vllm/v1/models"
HERE = (ip_network("127.0.0.1"),)
ELSEWHERE = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", MODELS),
        ("POST", "/vllm/v1/chat/completions"),
        ("OPTIONS", "/vllm/v1/chat/completions"),
        ("GET", "/key/list"),
        ("POST", "/key/generate"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("GET", "/nothing"),
        ("GET", "/health/"),
        ("GET", "/health/liveliness/../../key/list"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_another_address_is_refused_before_its_key_is_looked_at(
    stand_in: Any, gateway_to: Any, method: str, path: str
) -> None:
    server = stand_in(whole(b"{}"))
    gateway = gateway_to(server.port, allowed_ips=ELSEWHERE)
    headers = {"Origin": "http://x", "Access-Control-Request-Method": "POST"} if method == "OPTIONS" else {}
    for options in ({}, {"key": "sk-wrong"}, {"key": None}):
        answer = await gateway.ask(method, path, headers=headers, **options)
        assert (answer.status, answer.error["code"]) == (403, "address_not_allowed")
        assert b"127.0.0.1" not in answer.body
    assert server.connections == []


@pytest.mark.parametrize("path", ["/health/liveliness", "/health/liveness", "/health/readiness", "/health/readiness?x"])
@pytest_twisted.ensureDeferred
async def test_a_load_balancer_may_ask_for_health(gateway_to: Any, path: str) -> None:
    gateway = gateway_to(None, allowed_ips=ELSEWHERE)
    assert (await gateway.ask("GET", path, None)).status in (200, 503)


@pytest.mark.parametrize("allowed", [HERE, (*ELSEWHERE, *HERE), ()], ids=["listed", "among others", "no list"])
@pytest_twisted.ensureDeferred
async def test_a_listed_address_is_served(stand_in: Any, gateway_to: Any, allowed: Any) -> None:
    gateway = gateway_to(stand_in(whole(b"{}")).port, allowed_ips=allowed)
    assert (await gateway.ask("GET", MODELS)).status == 200
    assert (await gateway.ask("GET", "/key/list")).status == 200


@pytest_twisted.ensureDeferred
async def test_behind_a_trusted_proxy_the_clients_own_address_counts(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(b"{}")).port, allowed_ips=ELSEWHERE, trusted_proxies=HERE)
    for _ in range(2):
        for path in (MODELS, "/key/list"):
            for told, status in (
                ("192.0.2.7", 200),
                ("2001:db8::7", 200),
                ("198.51.100.1", 403),
                ("192.0.2.7, 198.51.100.1", 403),
                ("198.51.100.1, 192.0.2.7", 200),
                ("nonsense", 403),
            ):
                answer = await gateway.ask("GET", path, headers={"X-Forwarded-For": told})
                assert answer.status == status, (path, told)


@pytest_twisted.ensureDeferred
async def test_without_a_trusted_proxy_nobody_can_say_where_he_is(gateway_to: Any) -> None:
    gateway = gateway_to(None, allowed_ips=ELSEWHERE)
    answer = await gateway.ask("GET", "/key/list", headers={"X-Forwarded-For": "192.0.2.7"})
    assert answer.status == 403
