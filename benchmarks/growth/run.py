"""One database's measurements: every part in alternation with one key and an empty database."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp

import attrs

from benchmarks.client import Target
from benchmarks.growth.databases import Databases
from benchmarks.growth.fill import fill
from benchmarks.growth.gateways import Gateway, gateway
from benchmarks.growth.load import Requests, apply_load, steady_load
from benchmarks.growth.population import Population, Size
from benchmarks.growth.reads import Asked, reads, some_request_ids, time_read, today
from benchmarks.growth.report import EMPTY, FULL, OFF, ONE, Cost, Growth, Step, WriterStep
from benchmarks.growth.traffic import Spread
from benchmarks.growth.writer import measure_writer
from benchmarks.run import say

#: the parts of the measurements
KEYS, END_USERS, WRITER, BYTES, MEMORY, READS = "keys", "end-users", "writer", "bytes", "memory", "reads"
PARTS = (BYTES, READS, KEYS, END_USERS, MEMORY, WRITER)

#: more end users than anybody created
FLOOD = 1_000_000
#: keys of the requests that pass while reports are read
_STEADY_KEYS = 1_000
#: slower than any gateway here: to use each key once takes so many seconds at most
_SLOW_RATE = 4_000
_MEGABYTE = 1e6


@attrs.frozen
class Plan:
    """What is measured.

    Attributes:
        size: what the filled database holds.
        spread: how its rows spread.
        parts: some of `PARTS`.
        steps: numbers of active keys.
        rounds: how often each load is applied.
        seconds: how long each takes, at least.
        writer_seconds: likewise the writer's.
        rate: rows a second for the writer, and requests a second during reads.
        read_rate: requests a second during reads.
        read_times: how often each list and report is asked for.
        only: a text in the names of the reads.
    """

    size: Size
    spread: Spread
    parts: Sequence[str] = PARTS
    steps: Sequence[int] = (1, 100, 1_000, 10_000, 100_000)
    rounds: int = 3
    seconds: float = 6.0
    writer_seconds: float = 60.0
    rate: int = 10_000
    read_rate: int = 500
    read_times: int = 30
    only: str = ""

    def active(self) -> list[int]:
        """Return the numbers of active keys that there are."""
        return [number for number in self.steps if number <= self.size.keys]


class Measurement:
    """Measures one kind of database.

    Args:
        plan: what.
        databases: where databases are made.
        filled: the URL of a database that is filled already, which is copied; None fills one.
        upstream: the server behind the gateways.
        directory: where gateways run.
        saved: called with what is known after each part.
    """

    def __init__(
        self,
        plan: Plan,
        databases: Databases,
        filled: str | None,
        upstream: Target,
        directory: Path,
        saved: Callable[[Growth], None] = lambda growth: None,
    ) -> None:
        self.growth = Growth(databases.name, plan.size.words(), plan.size.rows)
        self._plan = plan
        self._databases = databases
        self._filled = filled
        self._upstream = upstream
        self._directory = directory
        self._saved = saved
        #: requests that were sent, by keys and end users: each load goes on where the one before stopped
        self._sent: Counter[tuple[str, int, int]] = Counter()
        self._urls: dict[str, str] = {}

    def run(self) -> Growth:
        """Measure everything.

        Raises:
            CannotStart: a gateway or a load does not start.
        """
        parts = self._plan.parts
        if BYTES in parts:
            self._say("bytes")
            self.growth.weights = dict(self._databases.weigh(self._url(FULL)))
            self._saved(self.growth)
        # first what reads, then what fills the databases with rows of a minute
        if READS in parts:
            with ExitStack() as stack:
                self._measure_reads(dict(self._start(stack, (FULL,)))[FULL])
        if {KEYS, END_USERS, MEMORY} & set(parts):
            with ExitStack() as stack:
                self._measure_gateways(dict(self._start(stack, (ONE, OFF, EMPTY, FULL))))
        if WRITER in parts:
            self._measure_writer()
        return self.growth

    def _url(self, name: str) -> str:
        """Return the URL of a gateway's database, which is made when it is first needed."""
        if name not in self._urls:
            self._say(f"the database of: {name}")
            self._urls[name] = self._make(name)
        return self._urls[name]

    def _make(self, name: str) -> str:
        size, word = self._plan.size, name.partition(" ")[0]
        if name == OFF:
            return self._databases.copy(self._url(EMPTY), word)
        if name == FULL and self._filled is not None:
            return self._databases.copy(self._filled, word)
        if name == ONE:
            size = attrs.evolve(size, keys=1, users=min(size.users, 1), teams=min(size.teams, 1), end_users=0, rows=0)
        elif name == EMPTY:
            size = attrs.evolve(size, rows=0)
        url = self._databases.make(word)
        fill(url, size, self._plan.spread, now=time.time(), progress=self._say)
        return url

    def _start(self, stack: ExitStack, names: Sequence[str]) -> Iterator[tuple[str, Gateway]]:
        for name in names:
            url = self._url(name)
            self._say(f"starting {name}")
            place = Path(mkdtemp(prefix="gateway-", dir=self._directory))
            running = gateway(name, url, self._upstream, self._databases, place, ledger=name != OFF)
            yield name, stack.enter_context(running)

    def _measure_gateways(self, gateways: Mapping[str, Gateway]) -> None:
        plan = self._plan
        for each in gateways.values():
            # what is imported and compiled at the first request
            apply_load(each.port, Requests(), 1.0)
            each.settle()
        self._note_memory(gateways, "all keys loaded")
        if KEYS in plan.parts:
            for keys in plan.active():
                self._measure_step(gateways, keys, 0)
        if END_USERS in plan.parts:
            most = max(plan.active(), default=1)
            for end_users in sorted({min(10_000, plan.size.end_users), plan.size.end_users, FLOOD}):
                self._measure_step({name: gateways[name] for name in (ONE, FULL)}, most, end_users)
        if MEMORY in plan.parts:
            for each in gateways.values():
                self._use(each, 1 if each.name == ONE else plan.size.keys)
            self._note_memory(gateways, "all keys in use")

    def _use(self, each: Gateway, keys: int) -> None:
        """Send a request of each key."""
        self._say(f"{keys:,} keys are used, {each.name}")
        sent = 0
        while sent < keys:
            outcome = apply_load(each.port, Requests(keys), max(self._plan.seconds, keys / _SLOW_RATE), before=sent)
            # no request is answered: there is nothing to wait for
            sent += outcome.requests or keys
        each.settle()

    def _note_memory(self, gateways: Mapping[str, Gateway], when: str) -> None:
        if MEMORY not in self._plan.parts:
            return
        for name, each in gateways.items():
            size = each.processes.resident_bytes()
            if size is not None:
                self.growth.megabytes[f"{name}, {when if name != ONE else 'after ' + when}"] = size / _MEGABYTE
        self._saved(self.growth)

    def _measure_step(self, gateways: Mapping[str, Gateway], keys: int, end_users: int) -> None:
        step = Step(keys, end_users, {name: Cost() for name in gateways})
        self.growth.steps.append(step)
        # long enough for each key to be used
        seconds = max(self._plan.seconds, keys / _SLOW_RATE)
        for number in range(1, self._plan.rounds + 1):
            self._say(f"{keys:,} keys, {end_users:,} end users, round {number} of {self._plan.rounds}")
            for name, each in gateways.items():
                requests = Requests() if name == ONE else Requests(keys, end_users)
                turn = (name, requests.keys, requests.end_users)
                done = each.measure(
                    requests,
                    self._plan.seconds if name == ONE else seconds,
                    before=self._sent[turn],
                )
                cost, outcome = step.costs[name], done.outcome
                self._sent[turn] += outcome.requests
                if done.gateway_us is not None:
                    cost.gateway.append(done.gateway_us)
                if done.server_us is not None:
                    cost.server.append(done.server_us)
                cost.rates.append(outcome.requests / outcome.seconds)
                if not done.settled:
                    self.growth.notes.append(f"{name}, {keys:,} keys: the ledger had not written everything in time.")
                if (complaint := outcome.complaint()) is not None:
                    self.growth.notes.append(f"{name}, {keys:,} keys, {end_users:,} end users: {complaint}.")
            self._saved(self.growth)

    def _measure_writer(self) -> None:
        plan = self._plan
        runs = [(1, 0, EMPTY)]
        for keys in (number for number in plan.active() if number > 1):
            runs += [(keys, 0, EMPTY), (keys, 0, FULL)]
        most = max(plan.active(), default=1)
        runs += [(most, plan.size.end_users, FULL), (most, FLOOD, FULL)]
        for keys, end_users, ledger in runs:
            self._say(f"the writer: {keys:,} keys, {end_users:,} end users, {ledger}")
            spool = self._directory / f"spool-{self._databases.name}-{len(self.growth.writer)}"
            size = attrs.evolve(plan.size, keys=keys, end_users=end_users)
            cost = measure_writer(
                self._url(ledger),
                spool,
                size,
                named=1.0 if end_users else 0.0,
                rate=plan.rate,
                seconds=plan.writer_seconds,
            )
            self.growth.writer.append(WriterStep(keys, end_users, ledger, cost))
            self._saved(self.growth)

    def _measure_reads(self, full: Gateway) -> None:
        plan, population = self._plan, Population(self._plan.size)
        request_ids = some_request_ids(full.port, full.master_key, today())
        asked = Asked(population, today(), random.Random(1), request_ids)
        steady = Requests(min(plan.size.keys, _STEADY_KEYS))
        chosen = [read for read in reads(asked) if plan.only in read.name]
        # each is asked for some seconds at most
        longest = 60.0 + 150.0 * len(chosen)
        with steady_load(full.port, steady, plan.read_rate, self._directory, longest=longest):
            time.sleep(1.0)
            began, rows = time.monotonic(), full.rows()
            for read in chosen:
                self._say(read.name)
                self.growth.reads.append(time_read(read, full.port, full.master_key, plan.read_times))
                self._saved(self.growth)
            rate = (full.rows() - rows) / (time.monotonic() - began)
        self.growth.notes.append(f"{rate:,.0f} requests a second went through while lists and reports were read.")
        self._saved(self.growth)

    def _say(self, text: str) -> None:
        say(f"{self._databases.name}: {text}")
