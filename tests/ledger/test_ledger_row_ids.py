from __future__ import annotations

import re

from twisted_vllm.ledger.row_ids import RowIds


def test_ids_are_32_hex_digits_in_the_order_of_time() -> None:
    ids = RowIds(lambda count: b"\xff" * count)
    made = [ids(time) for time in (0, 5, 1_764_072_000_000_000, 1_764_072_000_000_001, 2**62)]
    assert made == sorted(made)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)


def test_requests_of_one_moment_have_ids_of_their_own() -> None:
    numbers = iter(range(100))
    first, second = (RowIds(lambda count: bytes([next(numbers)] * count)) for _ in range(2))
    made = [ids(7) for ids in (first, second) for _ in range(1000)]
    assert len(set(made)) == 2000
