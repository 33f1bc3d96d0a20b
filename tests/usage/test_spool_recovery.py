"""Several processes in one directory: each has its segments, and another one recovers orphaned ones, once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twisted.logger import capturedLogs as captured_logs

from tests.builders import usage_row, usage_rows
from tests.conftest import LoggedFailures
from twisted_vllm.usage.interfaces import BEGINNING, Position
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool import format as spool_format
from twisted_vllm.usage.spool.format import encode_rows, header_line
from twisted_vllm.usage.spool.recovery import OrphanRecovery
from twisted_vllm.usage.spool.segments import claim, claim_new, claim_orphans
from twisted_vllm.usage.spool.spool import Spool


@pytest.fixture
def recovery(tmp_path: Path) -> Iterator[OrphanRecovery]:
    recovery = OrphanRecovery(tmp_path)
    yield recovery
    recovery.close()


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


def drain(recovery: OrphanRecovery) -> list[UsageRow]:
    recovery.claim()
    return drain_claimed(recovery)


def drain_claimed(recovery: OrphanRecovery) -> list[UsageRow]:
    """Read and remove all that is claimed."""
    found: list[UsageRow] = []
    while recovery.name:
        while (batch := recovery.next_batch(7)) is not None:
            assert not batch.own
            found += batch.rows
            recovery.acknowledge(batch)
        recovery.remove_all()
        recovery.next_name()
    return found


def test_the_files_of_a_living_process_are_left_alone(tmp_path: Path, recovery: OrphanRecovery) -> None:
    spool = write_spool(tmp_path, usage_rows(5))
    assert drain(recovery) == []
    spool.close()
    assert drain(recovery) == usage_rows(5)


def test_what_several_left_is_read_in_order_and_removed(tmp_path: Path, recovery: OrphanRecovery) -> None:
    leave(tmp_path, usage_rows(20))
    leave(tmp_path, usage_rows(20, 20))
    found = drain(recovery)
    assert sorted(found, key=lambda row: row.time) == usage_rows(40)
    assert recovery.bytes_left == 0
    assert os.listdir(tmp_path) == []


def test_what_was_not_committed_is_there_for_the_next(tmp_path: Path, recovery: OrphanRecovery) -> None:
    leave(tmp_path, usage_rows(20))
    recovery.claim()
    assert recovery.bytes_left > 0
    for _ in range(2):
        batch = recovery.next_batch(5)
        assert batch is not None
        recovery.acknowledge(batch)
    recovery.next_batch(5)
    recovery.close()
    found = drain(OrphanRecovery(tmp_path))
    assert found[-10:] == usage_rows(10, 10)


def test_a_batch_that_is_not_acknowledged_comes_again(tmp_path: Path, recovery: OrphanRecovery) -> None:
    leave(tmp_path, usage_rows(20))
    recovery.claim()
    first = recovery.next_batch(5)
    assert first is not None
    assert recovery.next_batch(5) is first
    recovery.acknowledge(first)
    assert [*first.rows, *drain_claimed(recovery)] == usage_rows(20)


def test_no_batch_spans_a_boundary(tmp_path: Path, recovery: OrphanRecovery) -> None:
    line = encode_rows([usage_row(0)])
    (tmp_path / "a1-000001.spool").write_bytes(header_line() + b"".join(encode_rows([row]) for row in usage_rows(6)))
    middle = Position(1, len(header_line()) + 2 * len(line))
    recovery.claim()
    sizes = []
    while (batch := recovery.next_batch(100, [BEGINNING, middle, Position(2, 7)])) is not None:
        sizes.append(len(batch.rows))
        recovery.acknowledge(batch)
    assert sizes == [2, 4]


def test_segments_go_as_far_as_they_are_released(tmp_path: Path, recovery: OrphanRecovery) -> None:
    leave(tmp_path, usage_rows(20))
    recovery.claim()
    before = sorted(tmp_path.glob("*.spool"))
    while (batch := recovery.next_batch(100)) is not None:
        recovery.acknowledge(batch)
    recovery.release(Position(2, 10))
    assert sorted(tmp_path.glob("*.spool")) == before[1:]
    recovery.release(Position(2, before[1].stat().st_size))
    assert sorted(tmp_path.glob("*.spool")) == before[2:]


def test_what_the_former_version_stored_is_not_read_again_however_often_it_is_begun(
    tmp_path: Path, recovery: OrphanRecovery
) -> None:
    """Its rows were added up when they were stored; those of this version are not yet."""
    segment, torn = tmp_path / "a1-000001.spool", b"12345678 torn"
    segment.write_bytes(b"vllm-passthrough-spool 1\n" + b"".join(encode_rows([row]) for row in usage_rows(6)) + torn)
    stored = {row.id for row in usage_rows(4)}
    recovery.claim()
    batch = recovery.next_batch(100, (), lambda rows: [row for row in rows if row.id not in stored])
    assert batch is not None
    assert (list(batch.rows), list(batch.damaged)) == (usage_rows(2, 4), [torn])
    # The database has them, and the process ends before it has their sums.
    stored |= {row.id for row in batch.rows}
    recovery.close()
    recovery.claim()
    again = recovery.next_batch(100, (), lambda rows: [row for row in rows if row.id not in stored])
    assert again is not None
    assert list(again.rows) == usage_rows(2, 4)
    assert segment.stat().st_mode & 0o777 == 0o600


def test_a_name_without_segments_is_taken_as_well(tmp_path: Path, recovery: OrphanRecovery) -> None:
    """The database may have its marks."""
    (tmp_path / "a1.lock").touch()
    recovery.claim()
    assert recovery.name
    assert drain_claimed(recovery) == []
    assert os.listdir(tmp_path) == []


def test_two_that_look_at_once_do_not_take_the_same(tmp_path: Path, recovery: OrphanRecovery) -> None:
    leave(tmp_path, usage_rows(3))
    recovery.claim()
    assert drain(OrphanRecovery(tmp_path)) == []
    assert drain(recovery) == usage_rows(3)


def test_a_torn_last_line_is_given_back_as_damaged(tmp_path: Path, recovery: OrphanRecovery) -> None:
    line = encode_rows([usage_row(2)])
    (tmp_path / "a1-000001.spool").write_bytes(header_line() + encode_rows([usage_row(1)]) + line[:50])
    recovery.claim()
    batch = recovery.next_batch(10)
    assert batch is not None
    assert (list(batch.rows), list(batch.damaged)) == ([usage_row(1)], [line[:50]])
    recovery.acknowledge(batch)
    assert recovery.next_batch(10) is None
    assert drain_claimed(recovery) == []
    assert os.listdir(tmp_path) == []


def test_a_line_that_is_longer_than_one_read_is_not_lost(
    tmp_path: Path, recovery: OrphanRecovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_format, "READ_BYTES", len(header_line()))
    leave(tmp_path, usage_rows(5))
    assert drain(recovery) == usage_rows(5)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"vllm-pass", header_line()])
def test_a_file_without_a_row_is_removed(tmp_path: Path, recovery: OrphanRecovery, content: bytes) -> None:
    (tmp_path / "a1-000001.spool").write_bytes(content)
    assert drain(recovery) == []
    assert os.listdir(tmp_path) == []


def test_a_newer_format_is_left_in_place_and_reported_once(
    tmp_path: Path, recovery: OrphanRecovery, logged_failures: LoggedFailures
) -> None:
    newer = tmp_path / "a1-000001.spool"
    newer.write_bytes(b"vllm-passthrough-spool 99\nwho knows\n")
    leave(tmp_path, usage_rows(3))
    with captured_logs() as events:
        assert drain(recovery) == usage_rows(3)
        assert drain(recovery) == []
    assert [event["version"] for event in events if event["log_level"].name == "critical"] == [99]
    assert newer.read_bytes().endswith(b"who knows\n")
    later = claim(tmp_path, "a1")
    assert later is not None, "a process of the newer version must get it"
    later.release()
    logged_failures.flush()


def test_an_unreadable_file_is_left_and_reported(
    tmp_path: Path, recovery: OrphanRecovery, logged_failures: LoggedFailures
) -> None:
    (tmp_path / "a1-000001.spool").mkdir()
    leave(tmp_path, usage_rows(3))
    with captured_logs() as events:
        assert drain(recovery) == usage_rows(3)
    assert [event["reason"] for event in events if event["log_level"].name == "critical"] == ["Is a directory"]
    logged_failures.flush()


def test_a_name_has_one_holder(tmp_path: Path) -> None:
    first = claim_new(tmp_path, os.urandom)
    assert claim(tmp_path, first.name) is None
    assert claim_orphans(tmp_path, ()) == []
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
