"""Gateways with one process and with several, side by side: each gets the same loads in turn."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import attrs
import msgspec

from benchmarks.growth.databases import Databases
from benchmarks.growth.load import Outcome, find_wrk, run_wrk
from benchmarks.growth.population import PRICES
from benchmarks.measure import ProcessTree, machine_cpu_seconds
from benchmarks.notes import Notes
from benchmarks.peers import RunningGateway, run_gateway_of
from benchmarks.processes import CannotStart, ask
from benchmarks.run import say
from benchmarks.workers.parts import Part, cpu_seconds, find_parts, resident_bytes, spent
from benchmarks.workers.report import DATABASE, REDIS, Cost, Figures, Line
from benchmarks.workers.upstream import ANSWER_PATH, EVENTS, INTERVAL, STREAM_PATH, Server

SCRIPT = Path(__file__).with_name("load.lua")
#: more than any load uses: what is measured is the question, and nobody is refused
LIMITS = {"rpm_limit": 10**9, "tpm_limit": 10**12, "max_budget": 10**6, "budget_duration": "30d"}
_MESSAGE = '"messages":[{"role":"user","content":"I am going to Paris, what should I see?"}],"max_tokens":8'
_ANSWER_BODY = f'{{"model":"bench",{_MESSAGE}}}'
_STREAM_BODY = '{"model":"bench","prompt":"I am going to Paris","max_tokens":64,"stream":true}'
#: processes are idle that use less of a CPU, for so many seconds
_IDLE_SHARE, _IDLE_SECONDS, _MOST_SETTLING = 0.06, 1.0, 120.0
#: how long all processes may need to know a new key, and how often in a row it must be known
_KNOWN_SECONDS, _KNOWN_TIMES = 15.0, 40
_WARM_UP_SECONDS = 2.0
_ANSWER_SECONDS = 30.0


@attrs.frozen
class Plan:
    """What is measured.

    Attributes:
        workers: numbers of workers that are compared; the first is the base of the ratios.
        ledgers: with the ledger off and on.
        loads: names of `LOADS`.
        rounds: how often each load is applied to each gateway.
        seconds: how long each load takes.
        connections: requests at once.
        streams: streams at once.
    """

    workers: tuple[int, ...]
    ledgers: tuple[bool, ...] = (False, True)
    loads: tuple[str, ...] = ()
    rounds: int = 3
    seconds: float = 5.0
    connections: int = 64
    streams: int = 1_000


@attrs.frozen
class Load:
    """A load.

    Attributes:
        path: what is asked.
        body: the body of each request.
        limited: whether the key has limits.
        streams: whether the answers are streams.
        single: whether there is one request at a time.
    """

    path: str
    body: str
    limited: bool = False
    streams: bool = False
    single: bool = False


LOADS: Mapping[str, Load] = {
    "requests": Load(ANSWER_PATH, _ANSWER_BODY),
    "limited requests": Load(ANSWER_PATH, _ANSWER_BODY, limited=True),
    "one at a time": Load(ANSWER_PATH, _ANSWER_BODY, single=True),
    "streams": Load(STREAM_PATH, _STREAM_BODY, streams=True),
}


class Contestant:
    """A gateway that runs.

    Attributes:
        workers: how many serve.
        ledger: whether it keeps a ledger.
        running: where it runs.
        parts: its processes.
    """

    def __init__(self, workers: int, ledger: bool, running: RunningGateway) -> None:
        """Make its keys, and wait until all processes know them.

        Raises:
            CannotStart: it cannot be used.
        """
        self.workers = workers
        self.ledger = ledger
        self.running = running
        self.parts: list[Part] = find_parts(running.process)
        self._keys = {limited: self._make_key(limited) for limited in (False, True)}
        self._event_bytes = 0.0

    @property
    def name(self) -> str:
        """What notes call it."""
        return f"{self.workers} worker{'s' * (self.workers > 1)}, ledger {'on' if self.ledger else 'off'}"

    def apply(self, load: Load, plan: Plan, seconds: float) -> tuple[Outcome, dict[Part, float], bool]:
        """Apply a load; return what came of it, the CPU seconds of each process, and whether all was written in time.

        What the ledger writes after the load is counted too.

        Raises:
            CannotStart: the load cannot be made, or a process of the gateway ended.
        """
        try:
            before = cpu_seconds(self.parts)
            outcome = self.send(load, plan, seconds)
            settled = self.settle()
            return outcome, spent(before, cpu_seconds(self.parts)), settled
        except OSError as error:
            raise CannotStart(f"{self.name}: a process ended during a load; see its log") from error

    def send(self, load: Load, plan: Plan, seconds: float) -> Outcome:
        """Send a load; return what came of it.

        Raises:
            CannotStart: the load cannot be made.
        """
        connections = 1 if load.single else plan.streams if load.streams else plan.connections
        url = f"http://127.0.0.1:{self.running.port}/vllm{load.path}"
        options = ["-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--latency", "--timeout=30s"]
        return run_wrk([find_wrk(), *options, f"-s{SCRIPT}", url, "--", self._keys[load.limited], load.body], seconds)

    def units(self, load: Load, outcome: Outcome) -> float:
        """Return how many answers came, or events of streams, those of streams that were not at their end included."""
        if not load.streams:
            return outcome.requests
        if not self._event_bytes:
            self._event_bytes = self._answer_bytes(load) / EVENTS
        return outcome.bytes / self._event_bytes

    def resident(self) -> dict[str, int]:
        """Return the resident memory of the processes of each kind in bytes."""
        sizes: Counter[str] = Counter()
        for part, size in resident_bytes(self.parts).items():
            sizes[part.kind] += size
        return dict(sizes)

    def settle(self) -> bool:
        """Wait until the processes are idle, the ledger's writer included; return whether they became so in time."""
        end = time.monotonic() + _MOST_SETTLING
        last = sum(cpu_seconds(self.parts).values())
        while time.monotonic() < end:
            time.sleep(_IDLE_SECONDS)
            used = sum(cpu_seconds(self.parts).values())
            if used - last < _IDLE_SHARE * _IDLE_SECONDS * len(self.parts):
                return True
            last = used
        return False

    def _make_key(self, limited: bool) -> str:
        body = msgspec.json.encode(LIMITS if limited else {})
        status, answer = self._ask("POST", "/key/generate", self.running.master_key, body)
        if status != 200:
            raise CannotStart(f"/key/generate answered {status}")
        key = str(msgspec.json.decode(answer)["key"])
        # each of many connections may reach another process
        end, known = time.monotonic() + _KNOWN_SECONDS, 0
        while known < _KNOWN_TIMES:
            known = known + 1 if self._ask("GET", "/vllm/v1/models", key, None)[0] == 200 else 0
            if time.monotonic() > end:
                raise CannotStart(f"{self.name}: a new key is not known to all processes")
        return key

    def _answer_bytes(self, load: Load) -> int:
        """Return how many bytes come for one request, the head included."""
        body, key = load.body.encode(), self._keys[load.limited]
        lines = [f"POST /vllm{load.path} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {key}"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close", "", ""]
        with socket.create_connection(("127.0.0.1", self.running.port), _ANSWER_SECONDS) as connection:
            connection.sendall("\r\n".join(lines).encode() + body)
            return sum(len(piece) for piece in iter(lambda: connection.recv(65_536), b""))

    def _ask(self, method: str, path: str, key: str, body: bytes | None) -> tuple[int, bytes]:
        return ask("127.0.0.1", self.running.port, method, path, key=key, body=body)


@attrs.frozen
class Around:
    """What the gateways use.

    Attributes:
        upstream: the server behind them.
        databases: where each has a database of its own.
        redis: the port of Redis, which counts limits; None without.
        redis_process: its processes.
        directory: where files are.
    """

    upstream: Server
    databases: Databases
    redis: int | None
    redis_process: ProcessTree | None
    directory: Path

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds of what is known of them."""
        redis = None if self.redis_process is None else self.redis_process.cpu_seconds()
        found = {DATABASE: self.databases.server_cpu(), REDIS: redis}
        return {who: seconds for who, seconds in found.items() if seconds is not None}


@contextmanager
def contestant(workers: int, ledger: bool, around: Around, suffix: str = "") -> Iterator[Contestant]:
    """Run a gateway on a database of its own.

    Args:
        workers: how many serve.
        ledger: whether it keeps a ledger.
        around: what it uses.
        suffix: tells its files and its database from those of others alike.

    Raises:
        CannotStart: it does not start.
    """
    name = f"workers_{workers}_{'ledger' if ledger else 'plain'}{suffix}"
    place = around.directory / name
    place.mkdir()
    own: dict[str, object] = {
        "api_base": f"http://127.0.0.1:{around.upstream.port}",
        "default_prices": PRICES,
        "ledger": {"enabled": ledger, "spool_directory": str(place / "spool")},
    }
    if around.redis is not None:
        # of all gateways one database: their keys are others
        own["redis_url"] = f"redis://127.0.0.1:{around.redis}/0"
    config = {"general_settings": {"database_url": around.databases.make(name)}, "passthrough": own}
    options = [] if workers == 1 else [f"--workers={workers}"]
    with run_gateway_of(config, {}, place, *options) as running:
        yield Contestant(workers, ledger, running)


def measure(plan: Plan, around: Around) -> Figures:
    """Run all gateways, apply each load to each of them in turn, and return the figures.

    Raises:
        CannotStart: a gateway or a load does not start.
    """
    notes, lines = Notes(), dict[tuple[str, bool, int], Line]()
    names = [name for name in plan.loads if around.upstream.streams or not LOADS[name].streams]
    if len(names) < len(plan.loads):
        notes.add(
            "Streams were not measured: nginx has no echo module (Debian: apt-get install libnginx-mod-http-echo)."
        )
    with ExitStack() as stack:
        running = [
            stack.enter_context(contestant(workers, ledger, around))
            for ledger in plan.ledgers
            for workers in plan.workers
        ]
        for each in running:
            for name in names:
                each.apply(LOADS[name], plan, min(_WARM_UP_SECONDS, plan.seconds))
        for number in range(1, plan.rounds + 1):
            for name in names:
                # the gateways in turn: what else the machine does falls on all of them
                for each in running:
                    say(f"round {number} of {plan.rounds}: {name}, {each.name}")
                    line = lines.setdefault((name, each.ledger, each.workers), Line(name, each.ledger, each.workers))
                    line.rounds.append(_apply(each, name, plan, around, notes))
        for each, name in product(running, names):
            if LOADS[name].streams:
                rates = [cost.rate for cost in lines[name, each.ledger, each.workers].rounds]
                notes.pace(each.name, statistics.median(rates), plan.streams / INTERVAL)
        memory = {each.name: each.resident() for each in running}
    return Figures(around.databases.name, list(lines.values()), memory, plan.streams, notes.texts())


def _apply(each: Contestant, name: str, plan: Plan, around: Around, notes: Notes) -> Cost:
    load = LOADS[name]
    what = f"{name}, {each.name}"
    began, others, used_around = time.monotonic(), others_cpu(), around.cpu_seconds()
    outcome, used, settled = each.apply(load, plan, plan.seconds)
    others_after = others_cpu()
    if others is not None and others_after is not None:
        notes.others(name, (others_after - others) / (time.monotonic() - began))
    if (complaint := outcome.complaint()) is not None:
        notes.add(f"{what}: {complaint}")
    if not settled:
        notes.add(f"{what}: the ledger was still writing {_MOST_SETTLING:g} s after the load.")
    units = each.units(load, outcome)
    if not units:
        raise CannotStart(f"{what}: nothing was answered")
    by_kind = defaultdict[str, float](float)
    for part, seconds in used.items():
        by_kind[part.kind] += seconds / units * 1e6
    workers = [seconds for part, seconds in used.items() if part.slot]
    evenness = min(workers) / max(workers) if any(workers) and not load.single else None
    around_us = {who: (now - used_around[who]) / units * 1e6 for who, now in around.cpu_seconds().items()}
    return Cost(units / outcome.seconds, outcome.p50, outcome.p99, dict(by_kind), evenness, around_us)


def others_cpu() -> float | None:
    """CPU seconds of all programs that are not this process, or were started by it."""
    machine, ours = machine_cpu_seconds(), ProcessTree(os.getpid()).cpu_seconds(ended=True)
    return None if machine is None or ours is None else machine - ours
