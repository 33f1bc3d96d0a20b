from __future__ import annotations

import sys
from pathlib import Path

import pytest

# What holds of the ledger in every database is tests/store's.
sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
pytest.register_assert_rewrite("usage_contract")
