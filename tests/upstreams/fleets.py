"""Builds routers and forwarders for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.task import Clock

from twisted_vllm.config.settings import ModelEntry, RetrySettings, RoutingSettings, Server
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.http.net.bounded_turns import turn_cooperator
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.forwarded import EVERYBODY
from twisted_vllm.proxy.forwarding import Forwarder
from twisted_vllm.upstreams.breaker import Breaker
from twisted_vllm.upstreams.dispatcher import Dispatcher
from twisted_vllm.upstreams.router import Router
from twisted_vllm.upstreams.server_state import Servers


def make_servers() -> Servers:
    """Return no servers yet, with breakers of the default settings and without jitter."""
    return Servers(
        lambda: Breaker(allowed_fails=3, cooldown=5.0, max_cooldown=60.0, slow_start=0.0, random=lambda: 0.0)
    )


def make_router(
    models: Sequence[ModelEntry],
    default: Server | None,
    strategy: str = "round-robin",
    random: Callable[[], float] = lambda: 0.0,
    **routing: Any,
) -> Router:
    """Return a router with servers of its own."""
    settings = RoutingSettings(routing_strategy=strategy, **routing)
    return Router(models, default, servers=make_servers(), routing=settings, random=random)


def make_forwarder(admission: Admission, agent: Any, clock: Clock, **options: Any) -> Forwarder:
    """Return a forwarder to an agent."""
    return Forwarder(
        admission=admission,
        dispatcher=options.pop("dispatcher", None) or Dispatcher(DeadlineSweeper(clock)),
        client=PassThroughClient(agent),
        addresses=options.pop("addresses", EVERYBODY),
        cooperate=turn_cooperator(clock).cooperate,
        clock=clock,
        routing=options.pop("routing", RoutingSettings()),
        retry=options.pop("retry", RetrySettings()),
        session_header="x-session-id",
        **options,
    )
