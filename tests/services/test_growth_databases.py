"""The growth table's databases on PostgreSQL: filled, copied, weighed and removed."""

from __future__ import annotations

import psycopg

from benchmarks.growth.databases import PostgresqlDatabases
from benchmarks.growth.fill import fill
from benchmarks.growth.ledger import NAMES, ROWS, SUMS
from benchmarks.growth.population import Size
from benchmarks.growth.traffic import Spread
from tests.services.private_postgresql import PrivatePostgresql
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate

SIZE = Size(keys=20, users=4, teams=3, end_users=5, rows=200, months=1.0)


def asked(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


def test_a_filled_database_is_copied_and_weighed(postgresql: PrivatePostgresql, postgresql_url: str) -> None:
    databases = PostgresqlDatabases(postgresql_url)
    before = databases.server_cpu()
    try:
        url = databases.make("full")
        fill(url, SIZE, Spread(), now=1_790_000_000.0, progress=lambda text: None)
        copied = databases.copy(url, "copy")
        for each in (url, copied):
            assert asked(each, "SELECT count(*) FROM vllm_passthrough_keys") == [(SIZE.keys,)]
            assert asked(each, "SELECT count(*) FROM vllm_passthrough_usage") == [(SIZE.rows,)]
        weights = databases.weigh(copied)
        assert {ROWS, SUMS, NAMES} <= set(weights)
        assert weights[ROWS] >= SIZE.rows * 80
        after = databases.server_cpu()
        assert before is not None
        assert after is not None
        assert after >= before
    finally:
        databases.remove()
    left = asked(postgresql_url, "SELECT datname FROM pg_database WHERE datname LIKE 'growth%'")
    assert left == []


def test_no_index_is_missing_afterwards(postgresql: PrivatePostgresql, postgresql_url: str) -> None:
    indexes = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
    new = postgresql.make_database()
    engine = make_engine(parse_url(Secret(new)), connections=1)
    migrate(engine)
    engine.dispose()
    fill(postgresql_url, SIZE, Spread(), now=1.8e9, progress=lambda text: None)
    # a filled database has partitions besides
    assert set(asked(new, indexes)) <= set(asked(postgresql_url, indexes))
