"""Kept prompts and answers in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.storage.contents_contract import ContentsContract
from tests.storage.retention_contract import Store


class TestOnPostgresql(ContentsContract):
    @pytest.fixture
    def store(self, postgresql_url: str) -> Iterator[Store]:
        store = Store(postgresql_url)
        yield store
        store.close()
