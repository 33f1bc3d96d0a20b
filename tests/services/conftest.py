from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from private_postgresql import PrivatePostgresql, find_binaries

from twisted_vllm.config.secret import Secret
from twisted_vllm.store.database import Database

# The contract of the stores and the start race are tests/store's.
sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
pytest.register_assert_rewrite("store_contract", "usage_queries_contract")


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
    database = Database(reactor, Secret(postgresql_url))
    database.open()
    yield database
    pytest_twisted.blockon(database.stop())
