"""The gateways that are compared, and what a request costs in each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.client import Target
from benchmarks.growth.databases import Databases
from benchmarks.growth.ledger import PENDING_METRICS, ROWS_METRIC
from benchmarks.growth.load import Outcome, Requests, apply_load
from benchmarks.growth.population import PRICES
from benchmarks.measure import ProcessTree
from benchmarks.peers import RunningGateway, run_gateway_of
from benchmarks.processes import ask

#: a process is idle that uses less of a CPU, for so many seconds
_IDLE_SHARE, _IDLE_SECONDS = 0.06, 0.5
#: how long to wait where the ledger has something to write
_PENDING_SECONDS = 2.0
#: how long the ledger may need to write what a load left
_LONGEST_SETTLING = 300.0


@attrs.frozen
class Measured:
    """What a load cost.

    Attributes:
        outcome: of the load.
        gateway_us: CPU microseconds of the gateway for a request; None where it cannot be measured.
        server_us: likewise of the database's server; None without one.
        settled: whether the ledger had written everything in time.
    """

    outcome: Outcome
    gateway_us: float | None
    server_us: float | None
    settled: bool


class Gateway:
    """A gateway that runs.

    Args:
        name: what the report calls it.
        running: where it runs.
        databases: where its database is.
    """

    def __init__(self, name: str, running: RunningGateway, databases: Databases) -> None:
        self.name = name
        self.port = running.port
        self.master_key = running.master_key
        self.processes = ProcessTree(running.process)
        self._databases = databases

    def measure(self, requests: Requests, seconds: float, *, before: int = 0) -> Measured:
        """Apply a load, and wait until the ledger has written it and what it adds up to.

        Raises:
            CannotStart: the load cannot be made.
        """
        began, server_began = self.processes.cpu_seconds(), self._databases.server_cpu()
        outcome = apply_load(self.port, requests, seconds, before=before)
        settled = self.settle()
        ended, server_ended = self.processes.cpu_seconds(), self._databases.server_cpu()
        return Measured(
            outcome,
            _each(began, ended, outcome.requests),
            _each(server_began, server_ended, outcome.requests),
            settled,
        )

    def settle(self) -> bool:
        """Wait until the process is idle and the ledger has nothing to write; return whether that came."""
        began = time.monotonic()
        last = self.processes.cpu_seconds()
        while time.monotonic() < began + _LONGEST_SETTLING:
            time.sleep(_IDLE_SECONDS)
            used = self.processes.cpu_seconds()
            idle = used is None or last is None or used - last < _IDLE_SHARE * _IDLE_SECONDS
            last = used
            if idle:
                if self._pending() == 0:
                    return True
                # each question takes CPU time, which is measured
                time.sleep(_PENDING_SECONDS)
                last = self.processes.cpu_seconds()
        return False

    def rows(self) -> float:
        """Return how many rows of the ledger it made."""
        return self._metrics(frozenset({ROWS_METRIC}))

    def _pending(self) -> float:
        return self._metrics(PENDING_METRICS)

    def _metrics(self, names: frozenset[str]) -> float:
        status, body = ask("127.0.0.1", self.port, "GET", "/metrics", key=self.master_key)
        lines = [line.split() for line in body.decode().splitlines()] if status == 200 else []
        return sum(float(line[1]) for line in lines if line and line[0] in names)


def _each(before: float | None, after: float | None, count: int) -> float | None:
    return None if before is None or after is None or not count else (after - before) / count * 1e6


@contextmanager
def gateway(
    name: str, url: str, upstream: Target, databases: Databases, directory: Path, *, ledger: bool
) -> Iterator[Gateway]:
    """Run a gateway on a database.

    Args:
        name: what the report calls it.
        url: the database's.
        upstream: the server behind it.
        databases: where the database is.
        directory: where it runs.
        ledger: whether it keeps a ledger.

    Raises:
        CannotStart: it does not start.
    """
    own: Mapping[str, object] = {
        "api_base": f"http://{upstream.host}:{upstream.port}",
        "default_prices": PRICES,
        "ledger": {"enabled": ledger, "spool_directory": str(directory / "spool")},
    }
    config = {"general_settings": {"database_url": url}, "passthrough": own}
    with run_gateway_of(config, {}, directory) as running:
        yield Gateway(name, running, databases)
