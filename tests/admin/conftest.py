from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from admin_harness import Gateway

# the site without sockets is tests/wire's
sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))
pytest.register_assert_rewrite("admin_harness", "server_harness")


@pytest.fixture
def gateway() -> Gateway:
    """An AdminApp over a store in memory."""
    from admin_harness import Gateway

    return Gateway()
