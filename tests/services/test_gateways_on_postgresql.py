"""Several gateways on one PostgreSQL, with the same keys: one is killed, another adds up what it left."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from tests.end_to_end.many_callers import PRICED, Callers, make_keys, serve
from tests.end_to_end.process_harness import FULL, MeasuredGateway, served
from tests.end_to_end.test_ledger_of_workers import kill_and_check
from tests.end_to_end.twistd_harness import wait_until
from tests.services.private_postgresql import PrivatePostgresql
from tests.whole_ledger import check_ledger

#: half of the load, in seconds: one gateway is killed between the halves
HALF = 15.0 if FULL else 1.5


def test_gateways_with_the_same_keys_add_up_each_request_once_and_lock_nobody_out(
    tmp_path: Path, postgresql: PrivatePostgresql, postgresql_url: str
) -> None:
    # the first two share a spool, as processes on one machine do
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    make_keys(postgresql_url)
    callers = Callers(pause=0.002)
    deadlocks = (postgresql.directory / "log").read_text().count("deadlock detected")
    with served(serve) as server, ExitStack() as stack:
        gateways = [
            stack.enter_context(
                MeasuredGateway(directory, server.port, passthrough=PRICED, DATABASE_URL=postgresql_url)
            )
            for directory in (shared, shared, other)
        ]
        with callers.calling([each.port for each in gateways], 6):
            time.sleep(HALF)
            gateways[0].signal(signal.SIGKILL)
            gateways[0].wait()
            time.sleep(HALF)
            callers.stop.set()
        # the second looks for what the first left each five seconds
        spool = shared / "vllm_passthrough.spool"
        wait_until(lambda: len(list(spool.glob("*.lock"))) == 1)
        assert [each.terminate() for each in gateways[1:]] == [0, 0]
    assert callers.refused == []
    ids = [row.id for row in check_ledger(postgresql_url)]
    assert len(ids) == len(set(ids))
    assert set(callers.seen) <= set(ids)
    assert [path for path in tmp_path.glob("*/*.spool/*") if path.name != "background"] == []
    assert (postgresql.directory / "log").read_text().count("deadlock detected") == deadlocks


def test_kills_of_any_process_of_a_gateway_with_workers_lose_no_row_and_double_none(
    tmp_path: Path, postgresql_url: str
) -> None:
    kill_and_check(tmp_path, postgresql_url, tmp_path / "vllm_passthrough.spool", DATABASE_URL=postgresql_url)


def test_a_dump_that_is_restored_while_a_gateway_serves_has_all_sums_of_its_rows(
    tmp_path: Path, postgresql: PrivatePostgresql, postgresql_url: str
) -> None:
    """A schema that takes the place of the present one in one transaction, as restoring a dump does."""
    make_keys(postgresql_url)
    callers = Callers(pause=0.002)
    with (
        served(serve) as server,
        MeasuredGateway(tmp_path, server.port, passthrough=PRICED, DATABASE_URL=postgresql_url) as gateway,
        callers.calling([gateway.port], 3),
    ):
        time.sleep(1.0)
        dumped = postgresql.dump(postgresql_url)
        time.sleep(3.0)
        before = len(callers.seen)
        with psycopg.connect(postgresql_url) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            connection.execute(dumped.encode())
        time.sleep(1.0)
        callers.stop.set()
    # what the end left in the spool, and the rows whose payers the restored schema lacked
    with MeasuredGateway(tmp_path, server.port, passthrough=PRICED, DATABASE_URL=postgresql_url) as gateway:
        wait_until(lambda: len(list((tmp_path / "vllm_passthrough.spool").glob("*.lock"))) == 1)
        assert gateway.terminate() == 0
    assert callers.refused == []
    assert len(callers.seen) > before
    assert "is not as the ledger left it" in (tmp_path / "gateway.log").read_text()
    ids = {row.id for row in check_ledger(postgresql_url)}
    assert set(callers.seen) <= ids
