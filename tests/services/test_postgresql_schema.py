from __future__ import annotations

from sqlalchemy import Engine, text

from tests.services.private_postgresql import PrivatePostgresql
from tests.storage.migrations import upgrade
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate


def indexes_of(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(
            connection.execute(text("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")).scalars()
        )


def test_a_new_database_has_the_indexes_of_a_migrated_one(postgresql: PrivatePostgresql) -> None:
    """The conditions of partial indexes too, which Alembic does not compare."""
    fresh, migrated = (make_engine(parse_url(Secret(postgresql.make_database()))) for _ in range(2))
    migrate(fresh)
    with migrated.begin() as connection:
        upgrade(connection)
    found = indexes_of(fresh)
    assert found == indexes_of(migrated)
    assert found
    for engine in (fresh, migrated):
        engine.dispose()
