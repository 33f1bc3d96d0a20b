"""Contexts of requests that are over, for the tests of what counts them."""

from __future__ import annotations

from typing import Any

import msgspec

from twisted_vllm.api_routes import classify
from twisted_vllm.auth.records import Principal
from twisted_vllm.config.settings import Server, Timeouts
from twisted_vllm.context import Authorization, Peer, RequestContext
from twisted_vllm.usage.meter import UsageMeter
from twisted_vllm.usage.pricing import FREE, RoutePricing
from twisted_vllm.usage.records import Usage

CHAT = "/v1/chat/completions"
USED = Usage(10, 5, 21, 3, 31)
ADA = Principal("key", "ada", "0123abcd", key_id="k1", user_id="u1", team_id="t1")


def server(name: str = "gpu-1:8000") -> Server:
    return Server(name, "127.0.0.1", 9, False, b"", name.encode(), None, Timeouts())


GPU = server()


def request(
    *,
    model: str = "qwen",
    group: str = "qwen",
    status: int = 200,
    server_status: int = 200,
    stream: bool = False,
    sent: bool = True,
    usage: Usage = USED,
    path: str = CHAT,
    at: Server | None = GPU,
    principal: Principal | None = ADA,
    **fields: Any,
) -> RequestContext:
    """Return a request that a server answered; it began at 1,000 s and took 3 s, the first byte 1 s."""
    context = RequestContext(Peer("192.0.2.1", False), 1_000.0)
    route = classify(b"POST", path.encode())
    context.principal = principal
    context.authorization = Authorization(
        principal=ADA,
        route=route,
        path=path.encode(),
        forwarded=path.encode(),
        needs_body=False,
        wants_body=False,
        payer=msgspec.Raw(b"[]"),
    )
    context.model, context.group, context.server, context.sent = model, group, at, sent
    meter = context.meter = UsageMeter(RoutePricing(route, FREE), 10, 1, False)
    meter.status, meter.is_stream = server_status, stream
    context.status, context.outcome, context.usage, context.cost = status, "completed", usage, 2_000_000_000_000
    context.attempted = context.attempt_began = 1_000.0004
    context.first_byte, context.ended = 1_001.0, 1_003.0
    for name, value in fields.items():
        setattr(context, name, value)
    return context


def refused(code: str = "model_not_found", **fields: Any) -> RequestContext:
    """Return a request that the gateway refused."""
    return request(
        sent=False,
        at=None,
        group="",
        server_status=0,
        usage=Usage(),
        cost=0,
        status=404,
        outcome="refused",
        error_code=code,
        attempted=0.0,
        **fields,
    )
