from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted

from tests.services.private_postgresql import PrivatePostgresql, find_binaries
from tests.services.private_redis import PROGRAMS, PrivateRedis, installed
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.database import Database


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PrivatePostgresql]:
    """A private PostgreSQL server; tests that need one are skipped, with the reason, where there is none."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server programs (initdb, postgres) are not installed")
    try:
        server = PrivatePostgresql(binaries)
    except LookupError as error:
        pytest.skip(str(error))
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgresql_url(postgresql: PrivatePostgresql) -> str:
    """The URL of an empty database."""
    return postgresql.make_database()


@pytest.fixture
def postgresql_database(reactor: Any, postgresql_url: str) -> Iterator[Database]:
    """A started Database on an empty database."""
    # a machine that runs other tests as well may be slow
    database = Database(reactor, Secret(postgresql_url), seconds=60.0)
    database.open()
    yield database
    pytest_twisted.blockon(database.stop())


@pytest.fixture(scope="session", params=installed() or PROGRAMS[:1])
def redis_server(request: pytest.FixtureRequest) -> Iterator[PrivateRedis]:
    """A private Redis, and a private Valkey where there is one; without any, tests are skipped, with the reason."""
    if not installed():
        pytest.skip("Neither redis-server nor valkey-server is installed")
    server = PrivateRedis(request.param)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def redis(redis_server: PrivateRedis) -> PrivateRedis:
    """The private Redis, empty."""
    redis_server.command("FLUSHALL")
    return redis_server
