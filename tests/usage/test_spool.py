"""The spool of one process: flushed rows are stored in order, once; rows that the disk refuses are kept in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import capturedLogs as captured_logs

from tests.builders import usage_row, usage_rows
from tests.conftest import LoggedFailures
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool import followed as spool_module
from twisted_vllm.usage.spool.queue import CACHED_BYTES, Batch
from twisted_vllm.usage.spool.spool import Spool


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def make_spool(tmp_path: Path, seconds: Seconds) -> Iterator[Callable[..., Spool]]:
    spools: list[Spool] = []

    def make(**options: Any) -> Spool:
        spools.append(Spool(tmp_path / "spool", monotonic=seconds, segment_bytes=2_000, **options))
        spools[-1].open()
        return spools[-1]

    yield make
    for spool in spools:
        spool.close()


@pytest.fixture
def spool(make_spool: Callable[..., Spool]) -> Spool:
    return make_spool()


@pytest.fixture
def uncached(make_spool: Callable[..., Spool]) -> Spool:
    """A spool that keeps no row in memory and reads all from its files, as after an outage."""
    return make_spool(cached_rows=0)


def put(spool: Spool, *rows: UsageRow) -> None:
    for row in rows:
        spool.append(row)
    spool.flush()


def drain(spool: Spool, size: int = 1000) -> list[UsageRow]:
    found: list[UsageRow] = []
    while (batch := spool.next_batch(size)) is not None:
        found += batch.rows
        spool.acknowledge(batch)
        if batch.position is not None:
            spool.release(batch.position)
    return found


def takes_rows(spool: Spool) -> bool:
    return spool.healthy


def segments(spool: Spool) -> list[str]:
    return sorted(path.name for path in spool.directory.glob("*.spool"))


def test_rows_are_not_there_before_they_are_flushed(spool: Spool) -> None:
    spool.append(usage_row(1))
    assert spool.next_batch(10) is None
    spool.flush()
    assert drain(spool) == [usage_row(1)]


def test_one_flush_is_one_write(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        writes.append(data)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    put(spool, *usage_rows(3))
    spool.flush()
    assert len(writes) == 1


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("cached_rows", [0, 1000])
def test_rows_come_in_order_over_many_segments(make_spool: Callable[..., Spool], size: int, cached_rows: int) -> None:
    spool = make_spool(cached_rows=cached_rows)
    rows = usage_rows(60)
    for start in range(0, 60, 2):
        put(spool, *rows[start : start + 2])
    assert len(segments(spool)) > 3
    assert spool.cached_rows == min(cached_rows, 60)
    assert drain(spool, size) == rows


def test_rows_come_in_order_where_memory_holds_only_the_last_of_them(make_spool: Callable[..., Spool]) -> None:
    spool = make_spool(cached_rows=2)
    put(spool, *usage_rows(3))
    put(spool, *usage_rows(2, 3))
    assert spool.cached_rows == 2
    assert list(iter_batches(spool)) == [usage_rows(3), usage_rows(2, 3)]


def iter_batches(spool: Spool) -> Iterator[list[UsageRow]]:
    while (batch := spool.next_batch(1000)) is not None:
        yield list(batch.rows)
        spool.acknowledge(batch)


def test_memory_beside_the_files_is_bounded(make_spool: Callable[..., Spool]) -> None:
    spool = make_spool(cached_rows=10)
    for number in range(25):
        put(spool, usage_row(number))
        assert spool.cached_rows <= 10
    assert drain(spool) == usage_rows(25)


def test_memory_beside_the_files_is_bounded_in_bytes(make_spool: Callable[..., Spool]) -> None:
    spool = make_spool(cached_rows=1_000_000)
    long = usage_row(0, end_user="e" * 100_000)
    before = most = 0
    for _ in range(3 * CACHED_BYTES // 100_000):
        put(spool, long)
        most = max(most, spool.cached_rows)
        before = spool.cached_rows
    assert most * 100_000 <= CACHED_BYTES
    assert before < most


def test_a_segment_goes_when_its_rows_are_committed_and_released_and_not_before(spool: Spool) -> None:
    for number in range(21):
        put(spool, usage_row(number))
    before = segments(spool)
    ends = []
    while (batch := spool.next_batch(3)) is not None:
        assert segments(spool) == before
        assert batch.position is not None
        ends.append(batch.position)
        spool.acknowledge(batch)
    assert spool.backlog().rows == 0
    middle = next(end for end in ends if end.segment == 2)
    spool.release(middle)
    assert segments(spool) == before[1:]
    spool.release(ends[-1])
    assert segments(spool) == before[-1:]


def test_a_segment_that_was_removed_from_outside_waits_for_no_release(uncached: Spool) -> None:
    put(uncached, usage_row(1))
    (uncached.directory / segments(uncached)[0]).unlink()
    with captured_logs():
        assert uncached.next_batch(10) is None
    assert uncached.finish()


def test_a_spool_that_begins_anew_leaves_its_segments_and_counts_on(spool: Spool, tmp_path: Path) -> None:
    put(spool, *usage_rows(3))
    before, name = segments(spool), spool.name
    former = spool.begin_anew()
    assert former is not None
    assert (former.name, [path.name for path in former.segments()]) == (name, before)
    assert spool.name != name
    put(spool, *usage_rows(2, 3))
    assert drain(spool) == usage_rows(2, 3)
    assert spool.written == 5
    assert before[0] in segments(spool)
    former.release()


def test_a_segment_is_followed_by_another_when_it_is_old(spool: Spool, seconds: Seconds) -> None:
    put(spool, usage_row(1))
    seconds.now += 61
    put(spool, usage_row(2))
    put(spool, usage_row(3))
    assert len(segments(spool)) == 2
    assert drain(spool) == usage_rows(3, 1)


def test_an_old_segment_goes_when_its_rows_are_committed_though_nothing_follows(spool: Spool, seconds: Seconds) -> None:
    put(spool, *usage_rows(3))
    drain(spool)
    assert len(segments(spool)) == 1
    seconds.now += 61
    assert spool.next_batch(1) is None
    assert segments(spool) == []
    put(spool, usage_row(3))
    assert drain(spool) == [usage_row(3)]


def test_rows_after_the_close_are_reported_as_lost(spool: Spool) -> None:
    spool.close()
    with captured_logs() as events:
        put(spool, usage_row(1))
        spool.close()
    assert [event["log_level"].name for event in events] == ["critical", "critical"]
    assert not spool.healthy
    assert spool.lost == 1


def test_nothing_is_left_of_a_spool_that_was_emptied(spool: Spool) -> None:
    put(spool, *usage_rows(3))
    drain(spool)
    spool.close()
    assert os.listdir(spool.directory) == []


def test_what_was_not_committed_is_left(spool: Spool) -> None:
    put(spool, *usage_rows(3))
    batch = spool.next_batch(10)
    assert batch is not None
    spool.close()
    assert len(segments(spool)) == 1


def test_the_files_are_for_their_owner_alone(spool: Spool) -> None:
    put(spool, usage_row(1))
    assert spool.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in spool.directory.iterdir()} == {0o600}


def test_the_backlog_is_reported(spool: Spool) -> None:
    assert (spool.backlog().rows, spool.backlog().bytes, spool.backlog().oldest) == (0, 0, None)
    put(spool, *usage_rows(3))
    spool.append(usage_row(3))
    backlog = spool.backlog()
    assert (backlog.rows, backlog.oldest) == (4, usage_row(0).time + 1000)
    assert backlog.bytes > 300
    spool.flush()
    assert drain(spool) == usage_rows(4)
    assert (spool.backlog().rows, spool.backlog().bytes, spool.backlog().oldest) == (0, 0, None)


def test_a_removed_file_is_reported_and_the_rest_continues(uncached: Spool) -> None:
    spool = uncached
    put(spool, *usage_rows(3))
    (spool.directory / segments(spool)[0]).unlink()
    with captured_logs() as events:
        assert spool.next_batch(10) is None
    assert "3 rows are lost" in events[0]["log_format"].format(**events[0])
    put(spool, usage_row(9))
    assert drain(spool) == [usage_row(9)]
    assert spool.lost == 3


# a disk that fails


class Disk:
    """``os.write`` with room for so many bytes, taken in pieces."""

    def __init__(self, room: int, piece: int = 1 << 30) -> None:
        self.room = room
        self.piece = piece
        self._write: Callable[[int, bytes], int] = os.write

    def write(self, descriptor: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(descriptor, bytes(data)[: min(self.room, self.piece)])
        self.room -= written
        return written


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(1 << 30)
    monkeypatch.setattr(os, "write", disk.write)
    return disk


@pytest.fixture(autouse=True)
def _criticals(logged_failures: LoggedFailures) -> Iterator[None]:
    """A spool that fails says so at the level that fails a test; these tests look at it themselves."""
    yield
    logged_failures.flush()


def test_short_writes_tear_no_line(uncached: Spool, disk: Disk) -> None:
    disk.piece = 7
    put(uncached, *usage_rows(5))
    assert drain(uncached) == usage_rows(5)


@pytest.mark.parametrize("room", [0, 1, 100, 500])
def test_a_full_disk_tears_no_line_and_the_rows_are_written_when_it_has_room(
    uncached: Spool, disk: Disk, seconds: Seconds, room: int
) -> None:
    spool = uncached
    put(spool, *usage_rows(2))
    disk.room = room
    with captured_logs() as events:
        put(spool, *usage_rows(8, 2))
        assert not takes_rows(spool)
        for number in range(10, 20):
            seconds.now += 1
            put(spool, usage_row(number))
        assert len(events) == 1
        assert "No space left" in events[0]["reason"]
        disk.room = 1 << 30
        seconds.now += 1
        put(spool, usage_row(20))
        assert takes_rows(spool)
        assert events[-1]["lost"] == 0
    assert spool.failures >= 1
    found: list[UsageRow] = []
    while (batch := spool.next_batch(1000)) is not None:
        assert not batch.damaged
        found += batch.rows
        spool.acknowledge(batch)
    assert found == usage_rows(21)


def test_a_disk_that_failed_is_not_tried_with_every_flush(spool: Spool, disk: Disk, seconds: Seconds) -> None:
    disk.room = 0
    for number in range(100):
        put(spool, usage_row(number))
    assert spool.failures == 1
    seconds.now += 1
    put(spool, usage_row(100))
    assert spool.failures == 2


def test_the_database_gets_what_the_disk_does_not_take(spool: Spool, disk: Disk, seconds: Seconds) -> None:
    put(spool, *usage_rows(2))
    disk.room = 0
    put(spool, *usage_rows(5, 2))
    assert drain(spool, 3) == usage_rows(7)
    assert spool.backlog().rows == 0
    disk.room = 1 << 30
    seconds.now += 1
    put(spool, usage_row(7))
    assert drain(spool) == [usage_row(7)]


def test_what_neither_takes_is_taken_back_in_order(spool: Spool, disk: Disk, seconds: Seconds) -> None:
    disk.room = 0
    put(spool, *usage_rows(5))
    batch = spool.next_batch(3)
    assert batch is not None
    spool.requeue(batch)
    disk.room = 1 << 30
    seconds.now += 1
    put(spool, usage_row(5))
    assert drain(spool) == usage_rows(6)


def test_unsaved_rows_are_reported_with_their_age_wherever_they_wait(
    spool: Spool, disk: Disk, seconds: Seconds
) -> None:
    disk.room = 0
    put(spool, *usage_rows(5, 10))
    told = (spool.unsaved, spool.backlog().rows, spool.backlog().oldest)
    assert told == (5, 5, usage_row(10).time + 1000)
    batch = spool.next_batch(3)
    assert batch is not None
    # the writer has three of them, and the database does not answer
    assert (spool.unsaved, spool.backlog().rows, spool.backlog().oldest) == told
    spool.requeue(batch)
    assert (spool.unsaved, spool.backlog().rows, spool.backlog().oldest) == told
    assert drain(spool, 3) == usage_rows(5, 10)
    assert (spool.unsaved, spool.backlog().rows, spool.backlog().oldest) == (0, 0, None)


def test_rows_that_find_no_room_at_all_are_counted(
    spool: Spool, disk: Disk, seconds: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "UNSAVED_ROWS", 10)
    disk.room = 0
    with captured_logs() as events:
        for number in range(15):
            put(spool, usage_row(number))
        disk.room = 1 << 30
        seconds.now += 1
        put(spool, usage_row(15))
    assert spool.lost == 5
    assert [event["log_level"].name for event in events] == ["critical", "critical", "warn"]
    assert events[-1]["lost"] == 5
    assert drain(spool) == [*usage_rows(10), usage_row(15)]


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Spool(tmp_path / "file" / "spool").open()


def test_what_is_written_is_synced_and_left_segments_are_closed(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for number in range(21):
        put(spool, usage_row(number))
    names = segments(spool)
    spool.sync()
    assert set(synced) == {"spool", *names}
    synced.clear()
    spool.sync()
    assert synced == []
    open_files = {os.path.basename(os.readlink(entry)) for entry in Path("/proc/self/fd").iterdir() if entry.exists()}
    assert open_files & set(names) == {names[-1]}


def test_a_batch_says_that_it_is_this_process_s(spool: Spool) -> None:
    put(spool, usage_row(1))
    batch = spool.next_batch(1)
    assert isinstance(batch, Batch)
    assert batch.own
