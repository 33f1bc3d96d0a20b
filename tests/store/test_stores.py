from __future__ import annotations

import pytest
from store_contract import StoreContract
from zope.interface.verify import verifyObject

from twisted_vllm.store.database import Database
from twisted_vllm.store.interfaces import IDatabase
from twisted_vllm.store.memory import MemoryDatabase
from twisted_vllm.store.store import Store


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
