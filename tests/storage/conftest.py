from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.database import Database


@pytest.fixture
def database(reactor: Any, tmp_path: Path) -> Iterator[Database]:
    # a machine that runs other tests as well may be slow
    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"), seconds=60.0)
    database.open()
    yield database
    pytest_twisted.blockon(database.stop())
