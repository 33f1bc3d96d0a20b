"""The spool of one process: what is flushed is there, in order, once; what the disk refuses is kept and told."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twisted.logger import capturedLogs as captured_logs

from tests.usage.spool_rows import make_row, make_rows
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool import queue as queue_module
from twisted_vllm.usage.spool import spool as spool_module
from twisted_vllm.usage.spool.queue import Batch
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
def spool(tmp_path: Path, seconds: Seconds) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", monotonic=seconds, segment_bytes=2_000)
    spool.open()
    yield spool
    spool.close()


def put(spool: Spool, *rows: UsageRow) -> None:
    for row in rows:
        spool.append(row)
    spool.flush()


def drain(spool: Spool, size: int = 1000) -> list[UsageRow]:
    found: list[UsageRow] = []
    while (batch := spool.take(size)) is not None:
        found += batch.rows
        spool.commit(batch)
    return found


def segments(spool: Spool) -> list[str]:
    return sorted(path.name for path in spool.directory.glob("*.spool"))


def without_cache(spool: Spool) -> None:
    """Have everything read from the files, as after an outage."""
    spool._queue.forget_cached()


def test_rows_are_not_there_before_they_are_flushed(spool: Spool) -> None:
    spool.append(make_row(1))
    assert spool.take(10) is None
    spool.flush()
    assert drain(spool) == [make_row(1)]


def test_one_flush_is_one_write(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: writes.append(data) or real(descriptor, data))
    put(spool, *make_rows(3))
    spool.flush()
    assert len(writes) == 1


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("from_files", [False, True])
def test_rows_come_in_order_over_many_segments(spool: Spool, size: int, from_files: bool) -> None:
    rows = make_rows(60)
    for start in range(0, 60, 2):
        put(spool, *rows[start : start + 2])
    assert len(segments(spool)) > 3
    if from_files:
        without_cache(spool)
    assert drain(spool, size) == rows


def test_rows_come_in_order_where_memory_holds_only_the_last_of_them(spool: Spool) -> None:
    put(spool, *make_rows(3))
    without_cache(spool)
    put(spool, *make_rows(2, 3))
    assert [len(batch) for batch in iter_batches(spool)] == [3, 2]


def iter_batches(spool: Spool) -> Iterator[list[UsageRow]]:
    while (batch := spool.take(1000)) is not None:
        yield list(batch.rows)
        spool.commit(batch)


def test_memory_beside_the_files_is_bounded(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "CACHED_ROWS", 10)
    for number in range(25):
        put(spool, make_row(number))
        assert sum(len(cached.rows) for cached in spool._queue._cache) <= 10
    assert drain(spool) == make_rows(25)


def test_a_segment_goes_when_its_rows_are_committed_and_not_before(spool: Spool) -> None:
    for number in range(21):
        put(spool, make_row(number))
    before = segments(spool)
    batch = spool.take(3)
    assert batch is not None
    assert segments(spool) == before
    spool.commit(batch)
    drain(spool)
    assert segments(spool) == before[-1:]


def test_a_segment_is_followed_by_another_when_it_is_old(spool: Spool, seconds: Seconds) -> None:
    put(spool, make_row(1))
    seconds.now += 61
    put(spool, make_row(2))
    put(spool, make_row(3))
    assert len(segments(spool)) == 2
    assert drain(spool) == make_rows(3, 1)


def test_an_old_segment_goes_when_its_rows_are_committed_though_nothing_follows(spool: Spool, seconds: Seconds) -> None:
    put(spool, *make_rows(3))
    drain(spool)
    assert len(segments(spool)) == 1
    seconds.now += 61
    assert spool.take(1) is None
    assert segments(spool) == []
    put(spool, make_row(3))
    assert drain(spool) == [make_row(3)]


def test_rows_that_come_after_the_end_are_told(spool: Spool) -> None:
    spool.close()
    with captured_logs() as events:
        put(spool, make_row(1))
        spool.close()
    assert [event["log_level"].name for event in events] == ["critical", "critical"]
    assert not spool.healthy
    # the fixture closes it once more
    spool._rows.clear()


def test_nothing_is_left_of_a_spool_that_was_emptied(spool: Spool) -> None:
    put(spool, *make_rows(3))
    drain(spool)
    spool.close()
    assert os.listdir(spool.directory) == []


def test_what_was_not_committed_is_left(spool: Spool) -> None:
    put(spool, *make_rows(3))
    batch = spool.take(10)
    assert batch is not None
    spool.close()
    assert len(segments(spool)) == 1


def test_the_files_are_for_their_owner_alone(spool: Spool) -> None:
    put(spool, make_row(1))
    assert spool.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in spool.directory.iterdir()} == {0o600}


def test_the_backlog_is_told(spool: Spool) -> None:
    assert (spool.backlog().rows, spool.backlog().bytes, spool.backlog().oldest) == (0, 0, None)
    put(spool, *make_rows(3))
    spool.append(make_row(3))
    backlog = spool.backlog()
    assert (backlog.rows, backlog.oldest) == (4, make_row(0).time + 1000)
    assert backlog.bytes > 300
    spool.flush()
    assert drain(spool) == make_rows(4)
    assert (spool.backlog().rows, spool.backlog().bytes, spool.backlog().oldest) == (0, 0, None)


def test_a_file_that_somebody_removed_is_told_and_the_rest_goes_on(spool: Spool) -> None:
    put(spool, *make_rows(3))
    without_cache(spool)
    (spool.directory / segments(spool)[0]).unlink()
    with captured_logs() as events:
        assert spool.take(10) is None
    assert "3 rows are lost" in events[0]["log_format"].format(**events[0])
    events.clear()
    put(spool, make_row(9))
    assert drain(spool) == [make_row(9)]
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
def disk(monkeypatch: pytest.MonkeyPatch, spool: Spool) -> Disk:
    disk = Disk(1 << 30)
    monkeypatch.setattr(os, "write", disk.write)
    return disk


@pytest.fixture(autouse=True)
def _criticals(logged_failures) -> Iterator[None]:
    """A spool that fails says so at the level that fails a test; these tests look at it themselves."""
    yield
    logged_failures.flush()


def test_short_writes_tear_no_line(spool: Spool, disk: Disk) -> None:
    disk.piece = 7
    put(spool, *make_rows(5))
    without_cache(spool)
    assert drain(spool) == make_rows(5)


@pytest.mark.parametrize("room", [0, 1, 100, 500])
def test_a_full_disk_tears_no_line_and_the_rows_are_written_when_it_has_room(
    spool: Spool, disk: Disk, seconds: Seconds, room: int
) -> None:
    put(spool, *make_rows(2))
    disk.room = room
    with captured_logs() as events:
        put(spool, *make_rows(8, 2))
        assert not spool.healthy
        for number in range(10, 20):
            seconds.now += 1
            put(spool, make_row(number))
        assert len(events) == 1
        assert "No space left" in events[0]["reason"]
        disk.room = 1 << 30
        seconds.now += 1
        put(spool, make_row(20))
        assert spool.healthy
        assert events[-1]["lost"] == 0
    assert spool.failures >= 1
    without_cache(spool)
    found = []
    while (batch := spool.take(1000)) is not None:
        assert not batch.damaged
        found += batch.rows
        spool.commit(batch)
    assert found == make_rows(21)


def test_a_disk_that_failed_is_not_tried_with_every_flush(spool: Spool, disk: Disk, seconds: Seconds) -> None:
    disk.room = 0
    for number in range(100):
        put(spool, make_row(number))
    assert spool.failures == 1
    seconds.now += 1
    put(spool, make_row(100))
    assert spool.failures == 2


def test_the_database_gets_what_the_disk_does_not_take(spool: Spool, disk: Disk, seconds: Seconds) -> None:
    put(spool, *make_rows(2))
    disk.room = 0
    put(spool, *make_rows(5, 2))
    assert drain(spool, 3) == make_rows(7)
    assert spool.backlog().rows == 0
    disk.room = 1 << 30
    seconds.now += 1
    put(spool, make_row(7))
    assert drain(spool) == [make_row(7)]


def test_what_neither_takes_is_taken_back_in_order(spool: Spool, disk: Disk, seconds: Seconds) -> None:
    disk.room = 0
    put(spool, *make_rows(5))
    batch = spool.take(3)
    assert batch is not None
    spool.put_back(batch)
    disk.room = 1 << 30
    seconds.now += 1
    put(spool, make_row(5))
    assert drain(spool) == make_rows(6)


def test_rows_in_memory_alone_are_told_with_their_age_wherever_they_wait(
    spool: Spool, disk: Disk, seconds: Seconds
) -> None:
    disk.room = 0
    put(spool, *make_rows(5, 10))
    told = (spool.unsaved, spool.backlog().rows, spool.backlog().oldest)
    assert told == (5, 5, make_row(10).time + 1000)
    batch = spool.take(3)
    assert batch is not None
    # the writer has three of them, and the database does not answer
    assert (spool.unsaved, spool.backlog().rows, spool.backlog().oldest) == told
    spool.put_back(batch)
    assert (spool.unsaved, spool.backlog().rows, spool.backlog().oldest) == told
    assert drain(spool, 3) == make_rows(5, 10)
    assert (spool.unsaved, spool.backlog().rows, spool.backlog().oldest) == (0, 0, None)


def test_rows_that_find_no_room_at_all_are_counted(
    spool: Spool, disk: Disk, seconds: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "UNSAVED_ROWS", 10)
    disk.room = 0
    with captured_logs() as events:
        for number in range(15):
            put(spool, make_row(number))
        disk.room = 1 << 30
        seconds.now += 1
        put(spool, make_row(15))
    assert spool.lost == 5
    assert [event["log_level"].name for event in events] == ["critical", "critical", "warn"]
    assert events[-1]["lost"] == 5
    assert drain(spool) == [*make_rows(10), make_row(15)]


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
        put(spool, make_row(number))
    names = segments(spool)
    spool.sync()
    assert set(synced) == {"spool", *names}
    synced.clear()
    spool.sync()
    assert synced == []
    open_files = {os.path.basename(os.readlink(entry)) for entry in Path("/proc/self/fd").iterdir() if entry.exists()}
    assert open_files & set(names) == {names[-1]}


def test_a_batch_says_that_it_is_this_process_s(spool: Spool) -> None:
    put(spool, make_row(1))
    batch = spool.take(1)
    assert isinstance(batch, Batch)
    assert batch.own
