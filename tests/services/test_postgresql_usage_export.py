"""The export on PostgreSQL."""

from __future__ import annotations

import pytest

pytest.importorskip("pyarrow", reason="PyArrow is not installed")
pytest.importorskip("duckdb", reason="DuckDB is not installed")

from tests.usage_export.export_contract import *  # noqa: F403
from twisted_vllm.config.secret import Secret


@pytest.fixture
def url(postgresql_url: str) -> Secret:
    return Secret(postgresql_url)
