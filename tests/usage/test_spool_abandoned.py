"""Several processes on one directory: each has its files, and what one leaves another takes over, once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twisted.logger import capturedLogs as captured_logs

from tests.usage.spool_rows import encode_line, make_row, make_rows
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool import lines as spool_lines
from twisted_vllm.usage.spool.claims import claim, claim_abandoned, claim_new
from twisted_vllm.usage.spool.lines import head_line
from twisted_vllm.usage.spool.orphans import OrphanRecovery
from twisted_vllm.usage.spool.spool import Spool


@pytest.fixture
def abandoned(tmp_path: Path) -> Iterator[OrphanRecovery]:
    abandoned = OrphanRecovery(tmp_path)
    yield abandoned
    abandoned.close()


def write_spool(directory: Path, rows: list[UsageRow]) -> Spool:
    spool = Spool(directory, segment_bytes=500)
    spool.open()
    for row in rows:
        spool.append(row)
        spool.flush()
    return spool


def leave(directory: Path, rows: list[UsageRow]) -> None:
    """Leave rows as a process does that ends before the database has them."""
    write_spool(directory, rows).close()


def drain(abandoned: OrphanRecovery) -> list[UsageRow]:
    found: list[UsageRow] = []
    abandoned.look()
    while (batch := abandoned.take(7)) is not None:
        assert not batch.own
        found += batch.rows
        abandoned.commit(batch)
    return found


def test_the_files_of_a_living_process_are_left_alone(tmp_path: Path, abandoned: OrphanRecovery) -> None:
    spool = write_spool(tmp_path, make_rows(5))
    assert drain(abandoned) == []
    spool.close()
    assert drain(abandoned) == make_rows(5)


def test_what_several_left_is_read_in_order_and_removed(tmp_path: Path, abandoned: OrphanRecovery) -> None:
    leave(tmp_path, make_rows(20))
    leave(tmp_path, make_rows(20, 20))
    found = drain(abandoned)
    assert sorted(found, key=lambda row: row.time) == make_rows(40)
    assert abandoned.bytes_held == 0
    assert os.listdir(tmp_path) == []


def test_what_was_not_committed_is_there_for_the_next(tmp_path: Path, abandoned: OrphanRecovery) -> None:
    leave(tmp_path, make_rows(20))
    abandoned.look()
    assert abandoned.bytes_held > 0
    for _ in range(2):
        batch = abandoned.take(5)
        assert batch is not None
        abandoned.commit(batch)
    abandoned.take(5)
    abandoned.close()
    found = drain(OrphanRecovery(tmp_path))
    assert found[-10:] == make_rows(10, 10)


def test_two_that_look_at_once_do_not_take_the_same(tmp_path: Path, abandoned: OrphanRecovery) -> None:
    leave(tmp_path, make_rows(3))
    abandoned.look()
    assert drain(OrphanRecovery(tmp_path)) == []
    assert drain(abandoned) == make_rows(3)


def test_a_torn_last_line_is_given_back_as_damaged(tmp_path: Path, abandoned: OrphanRecovery) -> None:
    line = encode_line(make_row(2))
    (tmp_path / "a1-000001.spool").write_bytes(head_line() + encode_line(make_row(1)) + line[:50])
    abandoned.look()
    batch = abandoned.take(10)
    assert batch is not None
    assert (list(batch.rows), list(batch.damaged)) == ([make_row(1)], [line[:50]])
    abandoned.commit(batch)
    assert abandoned.take(10) is None
    assert os.listdir(tmp_path) == []


def test_a_line_that_is_longer_than_one_read_is_not_lost(
    tmp_path: Path, abandoned: OrphanRecovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_lines, "READ_BYTES", len(head_line()))
    leave(tmp_path, make_rows(5))
    assert drain(abandoned) == make_rows(5)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"vllm-pass", head_line()])
def test_a_file_without_a_row_is_removed(tmp_path: Path, abandoned: OrphanRecovery, content: bytes) -> None:
    (tmp_path / "a1-000001.spool").write_bytes(content)
    abandoned.look()
    while (batch := abandoned.take(7)) is not None:
        assert list(batch.rows) == []
        abandoned.commit(batch)
    assert os.listdir(tmp_path) == []


def test_a_newer_format_is_left_where_it_is_and_told_once(
    tmp_path: Path, abandoned: OrphanRecovery, logged_failures
) -> None:
    newer = tmp_path / "a1-000001.spool"
    newer.write_bytes(b"vllm-passthrough-spool 99\nwho knows\n")
    leave(tmp_path, make_rows(3))
    with captured_logs() as events:
        assert drain(abandoned) == make_rows(3)
        assert drain(abandoned) == []
    assert [event["version"] for event in events if event["log_level"].name == "critical"] == [99]
    assert newer.read_bytes().endswith(b"who knows\n")
    later = claim(tmp_path, "a1")
    assert later is not None, "a process of the newer version must get it"
    later.release()
    logged_failures.flush()


def test_a_file_that_cannot_be_read_is_left_and_told(
    tmp_path: Path, abandoned: OrphanRecovery, logged_failures
) -> None:
    (tmp_path / "a1-000001.spool").mkdir()
    leave(tmp_path, make_rows(3))
    with captured_logs() as events:
        assert drain(abandoned) == make_rows(3)
    assert [event["reason"] for event in events if event["log_level"].name == "critical"] == ["Is a directory"]
    logged_failures.flush()


def test_a_name_has_one_holder(tmp_path: Path) -> None:
    first = claim_new(tmp_path, os.urandom)
    assert claim(tmp_path, first.name) is None
    assert claim_abandoned(tmp_path, ()) == []
    first.release()
    second = claim(tmp_path, first.name)
    assert second is not None
    second.release()
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_taken_is_not_new(tmp_path: Path) -> None:
    names = [b"\1" * 8, b"\1" * 8, b"\2" * 8]
    first, second = (claim_new(tmp_path, lambda _: names.pop(0)) for _ in range(2))
    assert (first.name, second.name) == ("01" * 8, "02" * 8)
    first.release()
    second.release()


def test_a_lock_that_is_not_the_directory_s_any_more_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may remove the lock's file between our opening it and locking it."""
    import fcntl

    real: Callable[[int, int], None] = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        (tmp_path / "a1.lock").unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert claim(tmp_path, "a1") is None
