from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.admin.admin_harness import Gateway

# The site without sockets is tests/wire's, the ledger's rows are tests/ledger's.
pytest.register_assert_rewrite("admin_harness", "server_harness")


@pytest.fixture
def gateway() -> Gateway:
    """An AdminApp over a store in memory."""
    from tests.admin.admin_harness import Gateway

    return Gateway()
