from __future__ import annotations

import pytest

# What holds of the ledger in every database is tests/store's.
pytest.register_assert_rewrite("usage_contract")
