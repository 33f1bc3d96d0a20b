from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from admin_harness import Gateway

pytest.register_assert_rewrite("admin_harness")


@pytest.fixture
def gateway() -> Gateway:
    """An AdminApp over a store in memory."""
    from admin_harness import Gateway

    return Gateway()
