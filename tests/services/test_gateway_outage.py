"""The database goes away while the gateway serves: nobody is refused, nothing is lost, and it catches up soon."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg

from benchmarks.growth.population import Population
from tests.end_to_end.many_callers import PRICED, Callers, make_keys, serve
from tests.end_to_end.process_harness import FULL, MeasuredGateway, served
from tests.end_to_end.test_ledger_kill import BODY
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until
from tests.services.private_postgresql import PrivatePostgresql
from tests.whole_ledger import check_ledger

#: between two requests of a client, in seconds: some 1,500 requests a second in all
PAUSE = 0.002
#: how long the database is away, and how long after its return it has everything, in seconds
AWAY = 60.0 if FULL else 2.0
CATCH_UP = 10.0


def count(url: str) -> int:
    """Return how many rows the ledger has."""
    with psycopg.connect(url) as connection:
        [(rows,)] = connection.execute("SELECT count(*) FROM vllm_passthrough_usage").fetchall()
    return int(rows)


def test_while_the_database_is_away_requests_go_on_and_none_is_lost(
    tmp_path: Path, postgresql: PrivatePostgresql, postgresql_url: str
) -> None:
    make_keys(postgresql_url)
    callers = Callers(pause=PAUSE)
    with served(serve) as server:
        with MeasuredGateway(tmp_path, server.port, passthrough=PRICED, DATABASE_URL=postgresql_url) as gateway:
            with callers.calling([gateway.port]):
                # some of the sums are gathered and not written
                time.sleep(1.5)
                postgresql.stop()
                try:
                    before = len(callers.seen)
                    time.sleep(AWAY)
                    during = len(callers.seen) - before
                    status, body = ask(gateway.port, "/key/generate", MASTER_KEY, "POST", "{}")
                    assert (status, "database_unavailable" in body) == (503, True)
                    known = Population.key(1)
                    assert ask(gateway.port, "/vllm/v1/chat/completions", known, "POST", BODY.decode())[0] == 200
                finally:
                    postgresql.start()
                returned = time.monotonic()
                wait_until(lambda: count(postgresql_url) >= before + during)
                caught_up = time.monotonic() - returned
                callers.stop.set()
            gateway.terminate()
        # what the end of the process left is in the spool, for the next one
        with MeasuredGateway(tmp_path, server.port, passthrough=PRICED, DATABASE_URL=postgresql_url) as gateway:
            assert gateway.terminate() == 0
    assert callers.refused == []
    assert during > AWAY * 20
    assert caught_up < CATCH_UP
    rows = check_ledger(postgresql_url)
    assert set(callers.seen) <= {row.id for row in rows}
    print(f"away {AWAY:.0f} s, {during} answers meanwhile, caught up in {caught_up:.1f} s, {len(rows)} rows")
