from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from tests.services.private_postgresql import PrivatePostgresql
from tests.storage.migrations import upgrade
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.schema import migrate


def indexes_of(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(
            connection.execute(
                text(
                    "SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class ON oid = indrelid "
                    "WHERE relnamespace = 'public'::regnamespace AND NOT relispartition ORDER BY 1"
                )
            ).scalars()
        )


def test_a_new_database_has_the_indexes_of_a_migrated_one(postgresql: PrivatePostgresql) -> None:
    """The conditions of partial indexes too, which Alembic does not compare."""
    fresh, migrated = (make_engine(parse_url(Secret(postgresql.make_database()))) for _ in range(2))
    migrate(fresh)
    with migrated.begin() as connection:
        upgrade(connection)
    found = indexes_of(fresh)
    assert found == indexes_of(migrated)
    assert len([each for each in found if " WHERE " in each]) == 1
    for engine in (fresh, migrated):
        engine.dispose()


def test_a_server_that_is_too_old_is_refused_before_anything_is_made(postgresql: PrivatePostgresql) -> None:
    engine = make_engine(parse_url(Secret(postgresql.make_database())))
    # It learns the version with the first connection.
    with engine.connect():
        engine.dialect.server_version_info = (13, 14)
    with pytest.raises(StoreError, match=r"is PostgreSQL 13\.14\. Upgrade it to 14 or newer"):
        migrate(engine)
    assert indexes_of(engine) == []
    engine.dispose()
