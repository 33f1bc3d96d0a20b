"""How the limit on open files is shared out, so that an admitted request can connect to its server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.descriptors import no_descriptor
from twisted_vllm.http.net.open_files import (
    MAX_REFUSED,
    RESERVED_DESCRIPTORS,
    DescriptorShares,
    SpareDescriptor,
    is_exhausted,
    open_file_limit,
    share_out,
)


@pytest.mark.parametrize(
    ("cap", "files", "found"),
    [
        (10_000, 65_536, 10_000),
        (10_000, 1_024, 360),
        (10_000, 256, 72),
        (10_000, None, 10_000),
        (None, 1_024, 360),
        (None, None, None),
        (100, 1_024, 100),
        (100, 3, 1),
    ],
)
def test_the_limit_on_client_connections_leaves_one_descriptor_for_each_server_connection(
    cap: int | None, files: int | None, found: int | None
) -> None:
    assert share_out(cap, files).clients == found


def test_without_a_limit_on_open_files_servers_have_none() -> None:
    assert share_out(50, None) == DescriptorShares(50, MAX_REFUSED, None, 256)


@given(st.none() | st.integers(1, 100_000), st.integers(RESERVED_DESCRIPTORS + 8, 1_000_000))
def test_all_shares_together_fit_and_every_client_has_one_for_its_server(cap: int | None, files: int) -> None:
    shares = share_out(cap, files)
    assert shares.clients is not None
    assert shares.upstreams is not None
    closing = shares.refused // 2
    taken = shares.clients + shares.refused + closing + shares.upstreams + shares.form_files
    assert taken <= files - RESERVED_DESCRIPTORS
    assert shares.upstreams >= shares.clients >= 1
    assert min(shares.refused, shares.form_files) >= 1


def test_this_process_may_open_some() -> None:
    files = open_file_limit()
    assert files is None or files > RESERVED_DESCRIPTORS


def test_a_spare_descriptor_is_there_when_no_other_is() -> None:
    spare = SpareDescriptor()
    assert spare.take()
    with no_descriptor():
        assert is_exhausted()
        spare.free()
        assert not is_exhausted()
        assert spare.take()
        spare.free()


def test_without_a_descriptor_none_is_spared() -> None:
    with no_descriptor():
        assert not SpareDescriptor().take()
