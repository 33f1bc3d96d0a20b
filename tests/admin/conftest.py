from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.admin.admin_harness import Gateway


@pytest.fixture
def gateway() -> Gateway:
    """An admin app over a database in memory."""
    # Not imported before its assertions are registered for rewriting.
    from tests.admin.admin_harness import Gateway

    return Gateway()
