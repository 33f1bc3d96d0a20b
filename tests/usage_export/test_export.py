"""The export on SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="PyArrow is not installed")
pytest.importorskip("duckdb", reason="DuckDB is not installed")

from tests.usage_export.export_contract import *  # noqa: F403
from twisted_vllm.config.secret import Secret


@pytest.fixture
def url(tmp_path: Path) -> Secret:
    return Secret(f"sqlite:///{tmp_path}/ledger.sqlite3")
