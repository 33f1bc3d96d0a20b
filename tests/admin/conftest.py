from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from admin_harness import Gateway

# The site without sockets is tests/wire's, the ledger's rows are tests/ledger's.
sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("wire", "ledger")]
pytest.register_assert_rewrite("admin_harness", "server_harness")


@pytest.fixture
def gateway() -> Gateway:
    """An AdminApp over a store in memory."""
    from admin_harness import Gateway

    return Gateway()
