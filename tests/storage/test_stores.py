from __future__ import annotations

import pytest
from zope.interface.verify import verifyObject

from tests.storage.memory_database import MemoryDatabase
from tests.storage.store_contract import StoreContract
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.interfaces import IDatabase
from twisted_vllm.storage.store import Store


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return Store(MemoryDatabase())


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def store(self, database: Database) -> Store:
        return Store(database)


def test_the_databases_provide_their_interface(database: Database) -> None:
    assert verifyObject(IDatabase, database)
    assert verifyObject(IDatabase, MemoryDatabase())
