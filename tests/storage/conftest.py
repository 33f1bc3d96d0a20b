from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.database import Database

pytest.register_assert_rewrite(
    "tests.storage.store_contract", "tests.storage.usage_contract", "tests.storage.usage_queries_contract"
)


@pytest.fixture
def database(reactor: Any, tmp_path: Path) -> Iterator[Database]:
    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"))
    database.open()
    yield database
    pytest_twisted.blockon(database.stop())
