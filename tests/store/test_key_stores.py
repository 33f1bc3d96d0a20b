from __future__ import annotations

import pytest
from key_store_contract import KeyStoreContract

from twisted_vllm.store.database import Database
from twisted_vllm.store.keys import DatabaseKeyStore
from twisted_vllm.store.memory import MemoryKeyStore


class TestMemoryKeyStore(KeyStoreContract):
    @pytest.fixture
    def store(self) -> MemoryKeyStore:
        return MemoryKeyStore()


class TestSqliteKeyStore(KeyStoreContract):
    @pytest.fixture
    def store(self, database: Database) -> DatabaseKeyStore:
        return DatabaseKeyStore(database)
