"""What is compared: one server alone, the gateway with each strategy, and vLLM's router with each policy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import attrs

from benchmarks.client import Target
from benchmarks.free_ports import free_port
from benchmarks.peers import run_gateway
from benchmarks.processes import CannotStart, answers, environment, running, wait_until_ready

ALONE = "alone"
GATEWAY_STRATEGIES = ("prefix", "session", "least-busy", "latency-based-routing", "round-robin", "simple-shuffle")
ROUTER_POLICIES = ("cache_aware", "kv_aware", "power_of_two", "round_robin")
EVENTS = "+events"
_HEALTH_INTERVAL = 5


@attrs.frozen
class KvEvents:
    """Where a server publishes the events of its prefix cache.

    Attributes:
        events: the endpoint to subscribe to, as in ``tcp://127.0.0.1:5557``.
        replay: the endpoint to ask for what was missed; None if it has none.
    """

    events: str
    replay: str | None = None


@attrs.frozen
class Fleet:
    """The servers of a run.

    Attributes:
        servers: where they are reached.
        model: what they serve.
        events: where they publish their events, in the same order; empty if not all do.
        block_size: tokens of a block of their caches.
        tokenizer: the model's directory, which vllm-router's kv_aware wants; None if not named.
    """

    servers: Sequence[Target]
    model: str
    events: Sequence[KvEvents] = ()
    block_size: int = 16
    tokenizer: Path | None = None


Contestant = Callable[[Fleet, Path], AbstractContextManager[Target]]


def _address(server: Target) -> str:
    return f"http://{server.host}:{server.port}{server.base}"


@contextmanager
def _alone(fleet: Fleet, _: Path) -> Iterator[Target]:
    yield fleet.servers[0]


@contextmanager
def _gateway(strategy: str, events: bool, fleet: Fleet, directory: Path) -> Iterator[Target]:
    if events and not fleet.events:
        raise CannotStart("it needs the servers' events (--events)")
    entries = [
        {
            "model_name": fleet.model,
            "litellm_params": {"model": f"hosted_vllm/{fleet.model}", "api_base": _address(server)}
            | ({} if server.key is None else {"api_key": server.key}),
        }
        for server in fleet.servers
    ]
    servers: dict[str, dict[str, object]] = {}
    if events:
        for server, source in zip(fleet.servers, fleet.events, strict=True):
            own: dict[str, object] = {"kv_events": source.events}
            if source.replay is not None:
                own["kv_events_replay"] = source.replay
            servers[_address(server)] = own
    config = {
        "model_list": entries,
        "router_settings": {"routing_strategy": strategy},
        "passthrough": {"servers": servers},
    }
    with run_gateway(config, {}, directory) as (target, _):
        yield target


@contextmanager
def _router(policy: str, program: Path, fleet: Fleet, directory: Path) -> Iterator[Target]:
    port, metrics_port = free_port(), free_port()
    addresses = [_address(server) for server in fleet.servers]
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *addresses]
    command += ["--policy", policy, "--log-level", "warning", "--worker-startup-check-interval", "1"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]
    command += ["--health-check-interval-secs", str(_HEALTH_INTERVAL)]
    variables = {}
    if policy == "kv_aware":
        if not fleet.events:
            raise CannotStart("it needs the servers' events (--events)")
        for address, source in zip(addresses, fleet.events, strict=True):
            command += ["--kv-event-source", f"{address}={source.events}"]
            if source.replay is not None:
                command += ["--kv-event-replay-source", f"{address}={source.replay}"]
        command += ["--kv-event-block-size", str(fleet.block_size), "--kv-event-model", fleet.model]
        if fleet.tokenizer is not None:
            variables["VLLM_ROUTER_TOKENIZER"] = str(fleet.tokenizer)
    log = directory / "router.out"
    with running(command, log, environ=environment(**variables), directory=directory) as process:
        wait_until_ready(process, log, lambda: answers(port, "/health"))
        yield Target("127.0.0.1", port, "", fleet.servers[0].key)


def contestants(router: Path | None) -> Mapping[str, Contestant]:
    """Return all contestants by name.

    Args:
        router: the program vllm-router; None leaves it out.
    """
    found: dict[str, Contestant] = {ALONE: _alone}
    for strategy in GATEWAY_STRATEGIES:
        found[f"gateway {strategy}"] = functools.partial(_gateway, strategy, False)
    found[f"gateway prefix{EVENTS}"] = functools.partial(_gateway, "prefix", True)
    if router is not None:
        for policy in ROUTER_POLICIES:
            found[f"router {policy}"] = functools.partial(_router, policy, router)
    return found
