"""The connection limit that the limit on open files allows."""

from __future__ import annotations

import pytest

from twisted_vllm.http.net.open_files import RESERVED_DESCRIPTORS, connections_within, open_file_limit


@pytest.mark.parametrize(
    ("cap", "files", "found"),
    [
        (10_000, 65_536, 10_000),
        (10_000, 1_024, 480),
        (10_000, None, 10_000),
        (None, 1_024, None),
        (100, 2 * 100 + RESERVED_DESCRIPTORS, 100),
        (100, 2 * 100 + RESERVED_DESCRIPTORS - 1, 99),
        (100, 3, 1),
    ],
)
def test_two_descriptors_are_reserved_for_each_connection(
    cap: int | None, files: int | None, found: int | None
) -> None:
    assert connections_within(cap, files) == found


def test_this_process_may_open_some() -> None:
    files = open_file_limit()
    assert files is None or files > RESERVED_DESCRIPTORS
