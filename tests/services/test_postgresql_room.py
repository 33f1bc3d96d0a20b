"""What takes room in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.storage.retention_contract import Store
from tests.storage.room_contract import RoomContract


class TestOnPostgresql(RoomContract):
    @pytest.fixture
    def store(self, postgresql_url: str) -> Iterator[Store]:
        store = Store(postgresql_url)
        yield store
        store.close()
