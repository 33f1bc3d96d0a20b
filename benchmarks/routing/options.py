"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from benchmarks.client import Target
from benchmarks.options import server_at
from benchmarks.routing.contestants import EVENTS, GATEWAY_STRATEGIES, ROUTER_POLICIES, KvEvents
from benchmarks.routing.scenarios import SCENARIOS, Scenario
from benchmarks.routing.talking import Load

_DESCRIPTION = """
Compares routing policies over real vLLM servers: how many of their prompts' tokens were in the prefix caches, which
share the busiest server had, and how long the first event took. Users of a group share a system prompt; each turn
sends the whole conversation so far. Every run has the same conversations, and begins with empty caches.
"""

_EPILOG = """
All servers have the same model, and run with VLLM_SERVER_DEV_MODE=1, which opens /reset_prefix_cache. Use no server
that somebody needs. Give --events for vllm-router's kv_aware and the gateway's prefix+events; vllm-router's also needs
vLLM's --enable-scale-out.

  VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --port 8000 --enable-scale-out --kv-events-config \\
      '{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557"}'

  python -m benchmarks.routing http://127.0.0.1:8000 http://127.0.0.1:8001 --router ~/router/bin
"""


@attrs.frozen
class RoutingOptions:
    """What to measure.

    Attributes:
        servers: the servers, in the order of the command line.
        load: the load of each run; its model is empty if a server is to be asked.
        events: where the servers publish events, in their order; empty if nobody said.
        block_size: tokens of a block of their caches.
        scenarios: what to measure.
        contestants: names of contestants; empty for all.
        rounds: how often.
        router: where vllm-router is; None looks on PATH.
        tokenizer: the model's directory for kv_aware.
        key: the servers' own key.
    """

    servers: Sequence[Target]
    load: Load
    events: Sequence[KvEvents]
    block_size: int
    scenarios: Sequence[Scenario]
    contestants: Sequence[str]
    rounds: int
    router: Path | None
    tokenizer: Path | None


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> RoutingOptions:
    """Read the command line; one that cannot be used ends the program with a message and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = ", ".join(
        ["alone", *(f"'gateway {each}'" for each in (*GATEWAY_STRATEGIES, f"prefix{EVENTS}"))]
        + [f"'router {each}'" for each in ROUTER_POLICIES]
    )
    add = parser.add_argument
    add("servers", nargs="+", metavar="URL", help="a vLLM server, as in http://127.0.0.1:8000")
    add("--model", default="", metavar="NAME", help="the model to ask for; default: the first that the server lists")
    add("--key", metavar="KEY", help="the servers' own key; VLLM_API_KEY keeps it out of the list of processes")
    add("--users", type=int, default=24, metavar="N", help="users that talk at once [%(default)s]")
    add("--turns", type=int, default=6, metavar="N", help="messages of each user [%(default)s]")
    add("--tokens", type=int, default=12, metavar="N", help="length of an answer [%(default)s]")
    add("--seed", type=int, default=1, metavar="N", help="of what the users say [%(default)s]")
    add("--rounds", type=int, default=1, metavar="N", help="how often all is measured [%(default)s]")
    add("--scenario", action="append", choices=sorted(SCENARIOS), help="may be repeated; default: all")
    add("--contestant", action="append", default=[], metavar="NAME", help=f"may be repeated; default: all of {names}")
    add(
        "--events",
        action="append",
        default=[],
        metavar="ENDPOINT[,REPLAY]",
        help="where a server publishes KV events, as in tcp://127.0.0.1:5557; once for each server, in their order",
    )
    add("--block-size", type=int, default=16, metavar="N", help="tokens of a block of the caches [%(default)s]")
    add("--router", type=Path, metavar="PLACE", help="vllm-router or its directory; default: PATH")
    add("--tokenizer", type=Path, metavar="DIRECTORY", help="the model's directory, for vllm-router's kv_aware")
    chosen = parser.parse_intermixed_args(arguments)
    if min(chosen.users, chosen.turns, chosen.tokens, chosen.rounds) < 1:
        parser.error("--users, --turns, --tokens and --rounds are 1 or more")
    if chosen.events and len(chosen.events) != len(chosen.servers):
        parser.error("--events is given once for each server")
    key = chosen.key or environ.get("VLLM_API_KEY") or None
    try:
        servers = [server_at(url, key) for url in chosen.servers]
    except ValueError as error:
        parser.error(str(error))
    sources = [each.partition(",") for each in chosen.events]
    return RoutingOptions(
        servers=servers,
        load=Load(chosen.model, chosen.users, chosen.turns, chosen.tokens, chosen.seed),
        events=[KvEvents(endpoint, replay or None) for endpoint, _, replay in sources],
        block_size=chosen.block_size,
        scenarios=[SCENARIOS[name] for name in chosen.scenario or SCENARIOS],
        contestants=chosen.contestant,
        rounds=chosen.rounds,
        router=chosen.router or (Path(environ["VLLM_ROUTER"]) if environ.get("VLLM_ROUTER") else None),
        tokenizer=chosen.tokenizer,
    )
