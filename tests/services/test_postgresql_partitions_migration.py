"""The migration to partitions on PostgreSQL."""

from __future__ import annotations

import pytest

from tests.services.private_postgresql import PrivatePostgresql
from tests.storage.partitions_migration_contract import PartitionsMigrationContract


class TestOnPostgresql(PartitionsMigrationContract):
    @pytest.fixture
    def urls(self, postgresql: PrivatePostgresql) -> list[str]:
        return [postgresql.make_database() for _ in range(3)]
