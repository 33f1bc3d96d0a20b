"""The database goes away while the gateway serves: nobody is refused, nothing is lost, and it catches up soon."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psycopg

from tests.end_to_end.many_callers import serve
from tests.end_to_end.process_harness import FULL, served
from tests.end_to_end.test_ledger_kill import BODY, CLIENTS, ask_on
from tests.end_to_end.twistd_harness import MASTER_KEY, Configured, ask, wait_until
from tests.services.private_postgresql import PrivatePostgresql

#: between two requests of a client, in seconds: some 1,500 requests a second in all
PAUSE = 0.002
#: how long the database is away, and how long after its return it has everything, in seconds
AWAY = 60.0 if FULL else 2.0
CATCH_UP = 10.0


def count(url: str) -> tuple[int, int]:
    """Return how many rows the ledger has, and of how many requests."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT count(*), count(DISTINCT COALESCE(request_id, id)) FROM vllm_passthrough_usage"
        ).fetchone()
    assert found is not None
    return int(found[0]), int(found[1])


def test_while_the_database_is_away_requests_go_on_and_none_is_lost(
    tmp_path: Path, postgresql: PrivatePostgresql, postgresql_url: str
) -> None:
    seen: list[str] = []
    with served(serve) as server:
        settings = "passthrough: {log: {file: gateway.log}}"
        with Configured(tmp_path, server.port, settings, DATABASE_URL=postgresql_url) as gateway:
            clients = [threading.Thread(target=ask_on, args=(gateway.port, seen, PAUSE)) for _ in range(CLIENTS)]
            for client in clients:
                client.start()
            time.sleep(0.5)
            postgresql.stop()
            try:
                before = len(seen)
                time.sleep(AWAY)
                during = len(seen) - before
                status, body = ask(gateway.port, "/key/generate", MASTER_KEY, "POST", "{}")
                assert (status, "database_unavailable" in body) == (503, True)
                assert ask(gateway.port, "/vllm/v1/chat/completions", MASTER_KEY, "POST", BODY.decode())[0] == 200
            finally:
                postgresql.start()
            returned = time.monotonic()
            wait_until(lambda: count(postgresql_url)[0] >= before + during)
            caught_up = time.monotonic() - returned
            gateway.terminate()
            for client in clients:
                client.join()
    assert during > AWAY * 20
    assert caught_up < CATCH_UP
    # what the end of the process left is in the spool, for the next one
    rows, requests = count(postgresql_url)
    assert rows == requests
    print(f"away {AWAY:.0f} s, {during} answers meanwhile, caught up in {caught_up:.1f} s, {rows} rows")
