"""PostgreSQL is frozen, or the network swallows its packets: all has a deadline, and all goes on afterwards."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import psycopg
import pytest

from tests.end_to_end.many_callers import serve
from tests.end_to_end.process_harness import served
from tests.end_to_end.test_ledger_kill import BODY
from tests.end_to_end.twistd_harness import MASTER_KEY, Configured, ask, wait_until
from tests.services.private_postgresql import PrivatePostgresql
from tests.services.silent_network import SilentNetwork

#: seconds within which an act is refused, the state is told, and the gateway has found its database again
REFUSED, TOLD, BACK = 10.0, 10.0, 10.0
DRAIN_TIMEOUT = 1
SETTINGS = f"passthrough: {{log: {{file: gateway.log}}, drain_timeout: {DRAIN_TIMEOUT}}}"
CHAT = "/vllm/v1/chat/completions"


def seconds_until(is_so: Callable[[], object]) -> float:
    began = time.monotonic()
    wait_until(is_so)
    return time.monotonic() - began


def metric(port: int, name: str) -> float:
    lines = ask(port, "/metrics")[1].splitlines()
    [value] = [line.split()[-1] for line in lines if line.startswith(f"vllm_passthrough_{name} ")]
    return float(value)


def readiness(port: int) -> tuple[int, str]:
    status, body = ask(port, "/health/readiness")
    return status, json.loads(body)["database"]


def chat(port: int, key: str) -> float:
    """Send a request that is served; return how long it took."""
    began = time.monotonic()
    assert ask(port, CHAT, key, "POST", BODY.decode())[0] == 200
    return time.monotonic() - began


def rows_in(url: str) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT count(*) FROM vllm_passthrough_usage").fetchone()
    assert found is not None
    return int(found[0])


def make_key(port: int, alias: str) -> tuple[int, str]:
    return ask(port, "/key/generate", MASTER_KEY, "POST", json.dumps({"key_alias": alias}))


def make_and_be_cut(port: int) -> None:
    """Ask for a key, from a gateway that ends before it can answer."""
    with suppress(OSError, HTTPException):
        make_key(port, "lost")


def logged(directory: Path, words: str) -> int:
    return (directory / "gateway.log").read_text().count(words)


class Frozen:
    """How the database is taken away and given back."""

    def __init__(self, away: Callable[[], None], back: Callable[[], None], url: str) -> None:
        self.away, self.back, self.url = away, back, url
        self._is_away = False

    def begin(self) -> None:
        self._is_away = True
        self.away()

    def end(self) -> None:
        if self._is_away:
            self._is_away = False
            self.back()


@contextmanager
def frozen_by(how: str, postgresql: PrivatePostgresql) -> Iterator[Frozen]:
    url = postgresql.make_database()
    if how == "a frozen server":
        found = Frozen(postgresql.freeze, postgresql.thaw, url)
        try:
            yield found
        finally:
            found.end()
        return
    network = SilentNetwork(postgresql.directory / ".s.PGSQL.5432")
    through = url.replace("@/", f"@127.0.0.1:{network.port}/").partition("?")[0]
    found = Frozen(network.silent.set, network.silent.clear, through)
    try:
        yield found
    finally:
        found.end()
        network.stop()


@pytest.mark.parametrize("how", ["a frozen server", "a silent network"])
def test_everything_has_a_deadline_and_goes_on_after(tmp_path: Path, postgresql: PrivatePostgresql, how: str) -> None:
    with (
        served(serve) as server,
        frozen_by(how, postgresql) as database,
        Configured(tmp_path, server.port, SETTINGS, DATABASE_URL=database.url) as gateway,
    ):
        port = gateway.port
        key = json.loads(make_key(port, "first")[1])["key"]
        chat(port, key)
        database.begin()
        began = time.monotonic()
        refusals: list[tuple[float, int, str]] = []

        def generate(number: int) -> None:
            asked = time.monotonic()
            status, body = make_key(port, f"lost-{number}")
            refusals.append((time.monotonic() - asked, status, body))

        acts = [threading.Thread(target=generate, args=(number,)) for number in range(10)]
        for act in acts:
            act.start()
        slowest = max(chat(port, key) for _ in range(20))
        wait_until(lambda: readiness(port) == (200, "unavailable"))
        told = time.monotonic() - began
        wait_until(lambda: metric(port, "database_up") == 0 and metric(port, "ledger_database_up") == 0)
        measured = time.monotonic() - began
        for act in acts:
            act.join()
        assert [(status, "database_unavailable" in body) for _, status, body in refusals] == [(503, True)] * 10
        refused = max(seconds for seconds, _, _ in refusals)
        chat(port, key)
        database.end()
        back = seconds_until(lambda: readiness(port) == (200, "available"))
        made = seconds_until(lambda: make_key(port, "afterwards")[0] == 200)
        wait_until(lambda: metric(port, "ledger_spool_rows") == 0)
        # nothing was half done: no name is taken
        assert [make_key(port, f"lost-{number}")[0] for number in range(10)] == [200] * 10
        assert rows_in(database.url) == 22
        assert logged(tmp_path, "the database failed") == logged(tmp_path, "the database is back") == 1
        print(
            f"{how}: served in {slowest * 1e3:.0f} ms, refused in {refused:.1f} s, readiness {told:.1f} s, metrics "
            f"{measured:.1f} s, back after {back:.1f} s, acts after {back + made:.1f} s"
        )
        assert slowest < 1.0
        assert refused < REFUSED
        assert max(told, measured) < TOLD
        assert back + made < BACK


def test_a_stop_ends_in_time_and_the_rows_stay_in_the_spool(tmp_path: Path, postgresql: PrivatePostgresql) -> None:
    with served(serve) as server, frozen_by("a frozen server", postgresql) as database:
        with Configured(tmp_path, server.port, SETTINGS, DATABASE_URL=database.url) as gateway:
            key = json.loads(make_key(gateway.port, "first")[1])["key"]
            database.begin()
            for _ in range(5):
                chat(gateway.port, key)
            act = threading.Thread(target=make_and_be_cut, args=(gateway.port,))
            act.start()
            time.sleep(1.0)
            began = time.monotonic()
            assert gateway.terminate() == 0
            took = time.monotonic() - began
            act.join()
        database.end()
        print(f"stopped in {took:.1f} s")
        assert took < DRAIN_TIMEOUT + 5
        with Configured(tmp_path, server.port, SETTINGS, DATABASE_URL=database.url):
            wait_until(lambda: rows_in(database.url) == 5)


def test_a_strict_gateway_is_not_ready_without_its_database(tmp_path: Path, postgresql: PrivatePostgresql) -> None:
    settings = "passthrough: {log: {file: gateway.log}, readiness_requires_database: true}"
    with (
        served(serve) as server,
        frozen_by("a frozen server", postgresql) as database,
        Configured(tmp_path, server.port, settings, DATABASE_URL=database.url) as gateway,
    ):
        assert readiness(gateway.port) == (200, "available")
        database.begin()
        took = seconds_until(lambda: readiness(gateway.port) == (503, "unavailable"))
        database.end()
        wait_until(lambda: readiness(gateway.port) == (200, "available"))
    assert took < TOLD
