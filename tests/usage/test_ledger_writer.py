"""The writer: every flushed row reaches the database once, despite outages."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs as captured_logs

from tests.builders import NOON, usage_row, usage_rows
from tests.usage.memory_usage_store import MemoryUsageStore
from twisted_vllm.usage.interfaces import DatabaseUnavailable, SpendUpdate
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool import batch_writer as batch_writer_module
from twisted_vllm.usage.spool import writer as writer_module
from twisted_vllm.usage.spool import writer_threads
from twisted_vllm.usage.spool.batch_writer import BatchWriter, quarantine
from twisted_vllm.usage.spool.format import encode_rows, header_line
from twisted_vllm.usage.spool.segments import Segment
from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.writer import LedgerWriter

#: how long a test waits for the writer's thread, in seconds
PATIENCE = 10.0


class Bench:
    """A spool, a store in memory and the writer between them."""

    def __init__(self, reactor: Any, directory: Path, **options: Any) -> None:
        self.reactor = reactor
        self.store = MemoryUsageStore()
        self.spool = Spool(directory, **options.pop("spool", {}))
        self.spent: list[SpendUpdate] = []
        self.now = float(NOON)
        self.writer = LedgerWriter(
            reactor, self.spool, self.store, self._committed, now=lambda: self.now, **({"interval": 0.01} | options)
        )

    def _committed(self, spent: Sequence[SpendUpdate]) -> None:
        assert self.reactor.running
        self.spent += spent

    def start(self) -> None:
        self.spool.open()
        self.writer.start()

    def put(self, *rows: UsageRow) -> None:
        for row in rows:
            self.spool.append(row)
        self.spool.flush()

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "the writer did not do it in time"
            await deferLater(self.reactor, 0.005)

    def stop(self) -> Deferred[None]:
        return self.writer.stop()


@pytest.fixture
def make_bench(reactor: Any, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**options: Any) -> Bench:
        benches.append(Bench(reactor, tmp_path, **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.store.unavailable = False
        if bench.spool.name:
            pytest_twisted.blockon(bench.stop())


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    bench = make_bench()
    bench.start()
    return bench


@pytest_twisted.ensureDeferred
async def test_rows_reach_the_database_and_what_they_cost_is_reported(bench: Bench) -> None:
    bench.put(*usage_rows(5))
    await bench.until(lambda: bool(bench.spent))
    assert list(bench.store.kept.values()) == usage_rows(5)
    assert bench.spent == [SpendUpdate("key", "k1", 35, 35, 0)]
    assert bench.writer.pending().rows == 0


@pytest_twisted.ensureDeferred
async def test_rows_that_come_one_by_one_share_transactions(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(interval=0.2)
    bench.start()
    for number in range(300):
        bench.put(usage_row(number))
        await deferLater(bench.reactor, 0.001)
    await bench.until(lambda: len(bench.store.kept) == 300)
    assert len(bench.store.batches) < 30


@pytest_twisted.ensureDeferred
async def test_a_backlog_goes_in_batches_of_a_bounded_size(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "BATCH_ROWS", 100)
    bench = make_bench()
    bench.spool.open()
    for start in range(0, 2500, 10):
        bench.put(*usage_rows(10, start))
    bench.writer.start()
    await bench.until(lambda: len(bench.store.kept) == 2500)
    assert set(bench.store.batches) == {100}


@pytest_twisted.ensureDeferred
async def test_what_a_run_left_is_moved_by_the_next_and_no_amount_is_its_own(
    make_bench: Callable[..., Bench],
) -> None:
    first, second = make_bench(), make_bench()
    first.spool.open()
    first.put(*usage_rows(5))
    first.spool.close()
    second.start()
    await second.until(lambda: bool(second.spent))
    assert list(second.store.kept.values()) == usage_rows(5)
    assert second.spent == [SpendUpdate("key", "k1", 0, 35, 0)]


@pytest_twisted.ensureDeferred
async def test_an_outage_of_rows_alone_is_one_outage_until_it_takes_rows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_threads, "MAX_BACKOFF", 0.01)
    bench.put(usage_row(0))
    await bench.until(lambda: len(bench.store.counted) == 1)
    with captured_logs() as events:
        bench.store.rows_unavailable = True
        bench.put(usage_row(1))
        for attempts in (1, 2, 3):
            await bench.until(lambda attempts=attempts: bench.store.attempts > 1 + attempts)  # type: ignore[misc]
            assert not bench.writer.batch_writer.reachable
        bench.store.rows_unavailable = False
        await bench.until(lambda: bench.writer.batch_writer.reachable)
    told = [event["log_level"].name for event in events if event["log_level"].name != "debug"]
    assert told == ["error", "info"]


@pytest_twisted.ensureDeferred
async def test_an_outage_is_logged_once_and_nothing_is_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_threads, "MAX_BACKOFF", 0.1)
    bench.store.unavailable = True
    with captured_logs() as events:
        bench.put(*usage_rows(3))
        await bench.until(lambda: bench.store.attempts > 2)
        bench.now += 30
        pending = bench.writer.pending()
        assert (pending.rows, bench.writer.batch_writer.reachable) == (3, False)
        assert 29 < pending.seconds < 31
        bench.put(*usage_rows(2, 3))
        bench.store.unavailable = False
        await bench.until(lambda: len(bench.store.kept) == 5)
        await bench.until(lambda: bench.writer.batch_writer.reachable)
        await bench.until(lambda: len(bench.store.counted) == 5)
        await deferLater(bench.reactor, 0.0)
    told = [event["log_level"].name for event in events if event["log_level"].name != "debug"]
    assert told == ["error", "info"]
    assert sum(spent.amount for spent in bench.spent) == 35


def test_the_database_is_back_when_it_does_what_it_did_not_do(bench: Bench) -> None:
    """Where a file of rows is read-only, sums without content are written all the time."""
    written = BatchWriter(bench.spool, bench.store)

    def fail() -> None:
        raise DatabaseUnavailable("read-only")

    with captured_logs() as events:
        for _ in range(3):
            assert written.reach("rows", fail) is None
            assert written.reach("sums", lambda: True)
            assert not written.reachable
        assert written.reach("rows", lambda: True)
        assert written.reachable
    told = [event["log_level"].name for event in events if event["log_level"].name != "debug"]
    assert told == ["error", "info"]


@pytest_twisted.ensureDeferred
async def test_a_row_that_the_database_refuses_is_set_aside_and_the_others_are_kept(
    bench: Bench, logged_failures: Any
) -> None:
    bench.store.rejected = {"request-7", "request-8"}
    bench.put(*usage_rows(20))
    await bench.until(lambda: len(bench.store.kept) == 18)
    damaged = bench.spool.directory / f"{bench.spool.name}.damaged"
    await bench.until(lambda: bench.writer.pending().rows == 0)
    assert damaged.read_bytes() == encode_rows([usage_row(7)]) + encode_rows([usage_row(8)])
    await bench.until(lambda: bool(bench.spent))
    assert sum(spent.amount for spent in bench.spent) == 18 * 7
    assert (bench.writer.batch_writer.committed, bench.writer.batch_writer.quarantined) == (18, 2)
    logged_failures.flush()


@pytest_twisted.ensureDeferred
async def test_what_is_set_aside_stands_there_once_however_often_its_batch_is_tried(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logged_failures: Any
) -> None:
    monkeypatch.setattr(writer_threads, "MAX_BACKOFF", 0.01)
    damaged = b"12345678 cut\n"
    rows = usage_rows(8)
    (tmp_path / "a1-000001.spool").write_bytes(header_line() + damaged + encode_rows(rows))
    bench = make_bench()
    bench.store.rejected = {"request-1"}
    write, given_up = bench.store.write, [DatabaseUnavailable("it became unavailable")] * 3

    def write_until_the_last(rows: Sequence[UsageRow]) -> list[UsageRow]:
        if given_up and rows[-1].request_id == "request-7" and len(rows) < 8:
            raise given_up.pop()
        return write(rows)

    bench.store.write = write_until_the_last  # type: ignore[method-assign]
    bench.start()
    await bench.until(lambda: bench.writer.batch_writer.committed == 7)
    assert not given_up
    assert (tmp_path / f"{bench.spool.name}.damaged").read_bytes() == damaged + encode_rows([rows[1]])
    assert bench.writer.batch_writer.quarantined == 2
    logged_failures.flush()


@pytest_twisted.ensureDeferred
async def test_a_disk_that_takes_nothing_aside_keeps_no_row_from_the_database_and_no_amount_counts_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, logged_failures: Any
) -> None:
    monkeypatch.setattr(writer_threads, "MAX_BACKOFF", 0.01)
    tried: list[int] = []

    def set_aside_at_last(directory: Path, name: str, lines: Sequence[bytes]) -> Path:
        tried.append(len(lines))
        if len(tried) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return quarantine(directory, name, lines)

    monkeypatch.setattr(batch_writer_module, "quarantine", set_aside_at_last)
    bench.store.rejected = {"request-7"}
    with captured_logs() as events:
        bench.put(*usage_rows(20))
        await bench.until(lambda: bench.writer.pending().rows == 0)
    assert tried == [1, 1, 1]
    told = [event["log_format"].partition(":")[0] for event in events if event["log_level"].name == "critical"]
    assert told == [
        "The ledger cannot set aside what is damaged or unfit",
        "Rows of the ledger are refused by the database ({reason})",
    ]
    assert len(bench.store.kept) == 19
    await bench.until(lambda: bool(bench.spent))
    assert sum(spent.amount for spent in bench.spent) == 19 * 7
    assert (bench.writer.batch_writer.committed, bench.writer.batch_writer.quarantined) == (19, 1)
    logged_failures.flush()


@pytest_twisted.ensureDeferred
async def test_damaged_lines_are_quarantined_and_logged(
    make_bench: Callable[..., Bench], tmp_path: Path, logged_failures: Any
) -> None:
    line = bytearray(encode_rows([usage_row(2)]))
    line[20] ^= 1
    (tmp_path / "a1-000001.spool").write_bytes(
        header_line() + encode_rows([usage_row(1)]) + line + encode_rows([usage_row(3)])
    )
    bench = make_bench()
    bench.store.unavailable = True
    with captured_logs() as events:
        bench.start()
        await bench.until(lambda: bench.store.attempts > 1)
        bench.store.unavailable = False
        await bench.until(lambda: bench.writer.batch_writer.committed == 2)
    assert list(bench.store.kept.values()) == [usage_row(1), usage_row(3)]
    assert [event["count"] for event in events if event["log_level"].name == "critical"] == [1]
    assert (tmp_path / f"{bench.spool.name}.damaged").read_bytes() == bytes(line)
    assert bench.writer.batch_writer.quarantined == 1
    logged_failures.flush()


@pytest_twisted.ensureDeferred
async def test_the_last_rows_are_moved_at_the_end(bench: Bench, tmp_path: Path) -> None:
    bench.spool.append(usage_row(1))
    await bench.stop()
    assert list(bench.store.kept) == [usage_row(1).id]
    assert bench.store.closed
    assert list(tmp_path.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_an_end_without_a_database_leaves_the_rows_in_the_spool(
    bench: Bench, make_bench: Callable[..., Bench]
) -> None:
    bench.store.unavailable = True
    bench.put(*usage_rows(3))
    await bench.until(lambda: bench.store.attempts > 0)
    began = time.monotonic()
    await bench.stop()
    assert time.monotonic() - began < 2.5
    later = make_bench()
    later.start()
    await later.until(lambda: len(later.store.kept) == 3)


@pytest_twisted.ensureDeferred
async def test_a_spool_whose_directory_has_gone_does_not_hold_up_the_end(bench: Bench, tmp_path: Path) -> None:
    bench.put(*usage_rows(3))
    await bench.until(lambda: len(bench.store.kept) == 3)
    shutil.rmtree(tmp_path)
    with captured_logs() as events:
        await bench.stop().addTimeout(PATIENCE, bench.reactor)
    [told] = [event for event in events if event["log_format"].startswith("The ledger's spool cannot be closed")]
    assert told["reason"] == "No such file or directory"


@pytest_twisted.ensureDeferred
async def test_a_database_that_hangs_does_not_hold_up_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, make_bench: Callable[..., Bench]
) -> None:
    monkeypatch.setattr(writer_threads, "STOP_SECONDS", 0.1)
    with bench.store.changed:
        # it holds the store's lock, as a server does that does not answer
        bench.put(*usage_rows(3))
        began = time.monotonic()
        await bench.stop()
        assert time.monotonic() - began < 2
        later = make_bench()
        later.start()
        await later.until(lambda: len(later.store.kept) == 3)


@pytest_twisted.ensureDeferred
async def test_rows_that_are_too_old_go_and_the_others_stay(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(retention=86_400.0)
    old, new = usage_rows(3, -172_800_000), usage_rows(3)
    bench.store.kept = {row.id: row for row in (*old, *new)}
    bench.start()
    await bench.until(lambda: len(bench.store.kept) == 3)
    assert list(bench.store.kept.values()) == new
    assert bench.store.deletions[0] == (NOON - 86_400) * 1_000_000


@pytest_twisted.ensureDeferred
async def test_an_internal_error_of_the_writer_is_logged_and_it_continues(bench: Bench, logged_failures: Any) -> None:
    original = bench.store.write
    failing = [True]

    def write(rows: Sequence[UsageRow]) -> list[UsageRow]:
        if failing:
            failing.pop()
            raise ZeroDivisionError
        return original(rows)

    bench.store.write = write  # type: ignore[method-assign]
    bench.put(usage_row(1))
    await bench.until(lambda: len(bench.store.kept) == 1)
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


@pytest_twisted.ensureDeferred
async def test_the_spool_is_synced_while_the_database_is_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        real(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".spool"):
            synced.append(size)

    monkeypatch.setattr(os, "fsync", fsync)
    bench.store.unavailable = True
    bench.put(usage_row(1))
    [segment] = bench.spool.directory.glob("*.spool")
    await bench.until(lambda: segment.stat().st_size in synced)


# sums that come later than rows


def take_turns(bench: Bench, *, force: bool = False) -> bool:
    """Take a turn of the writer's thread in this one."""
    return bench.writer.move_all(force=force)


def segments(bench: Bench) -> list[str]:
    return sorted(path.name for path in bench.spool.directory.glob("*.spool"))


def test_segments_stay_until_the_sums_are_written(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.spool.open()
    bench.store.flushes = False
    bench.put(*usage_rows(3))
    assert take_turns(bench)
    assert (len(bench.store.kept), bench.store.counted) == (3, [])
    pending = bench.writer.pending()
    assert (pending.rows, pending.gathered) == (0, 3)
    assert pending.gathered_seconds > 0
    bench.spool.finish()
    assert len(segments(bench)) == 1
    bench.store.flushes = True
    assert take_turns(bench)
    assert (bench.store.counted, segments(bench)) == (usage_rows(3), [])
    assert (bench.writer.pending().gathered, bench.writer.pending().gathered_seconds) == (0, 0)


def test_no_more_rows_are_gathered_while_their_sums_cannot_be_written(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.spool.open()
    bench.put(*usage_rows(3))
    bench.store.sums_unavailable = True
    assert not take_turns(bench)
    bench.put(*usage_rows(3, 3))
    for _ in range(3):
        assert not take_turns(bench)
    assert (len(bench.store.kept), bench.writer.pending().gathered) == (3, 3)
    bench.store.sums_unavailable = False
    assert take_turns(bench)
    assert bench.store.counted == usage_rows(6)


def test_a_batch_of_another_run_that_the_database_did_not_take_is_tried_again(
    make_bench: Callable[..., Bench], tmp_path: Path
) -> None:
    (tmp_path / "a1-000001.spool").write_bytes(header_line() + b"".join(encode_rows([row]) for row in usage_rows(6)))
    bench = make_bench()
    bench.spool.open()
    write, failures = bench.store.write, [DatabaseUnavailable("it became unavailable")] * 2

    def fail_first(rows: Sequence[UsageRow]) -> list[UsageRow]:
        if failures:
            raise failures.pop()
        return write(rows)

    bench.store.write = fail_first  # type: ignore[method-assign]
    assert [take_turns(bench) for _ in range(3)] == [False, False, True]
    assert bench.store.counted == usage_rows(6)
    assert [path.name for path in tmp_path.glob("a1-*")] == []
    assert bench.store.marks == {}


@pytest.mark.parametrize("cached_rows", [0, 1000])
def test_a_database_that_was_restored_gets_again_what_the_spool_still_has(
    make_bench: Callable[..., Bench], cached_rows: int
) -> None:
    bench = make_bench(spool={"cached_rows": cached_rows})
    bench.spool.open()
    first = bench.spool.name
    bench.put(*usage_rows(2))
    assert take_turns(bench)
    bench.put(*usage_rows(2, 2))
    bench.store.was_restored = True
    # an older state, in which nothing of these is
    bench.store.kept, bench.store.counted, bench.store.marks = {}, [], {}
    with captured_logs() as events:
        assert not take_turns(bench)
    assert [event["log_level"].name for event in events] == ["warn"]
    bench.put(*usage_rows(2, 4))
    assert take_turns(bench, force=True)
    assert sorted(bench.store.counted, key=lambda row: row.time) == usage_rows(6)
    assert set(bench.store.kept) == {row.id for row in usage_rows(6)}
    assert bench.spool.name != first
    assert bench.store.marks == {}


def test_a_disk_that_takes_no_new_segments_does_not_let_the_old_ones_go(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    bench.spool.open()
    bench.put(*usage_rows(2))
    bench.store.was_restored = True

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(bench.spool, "begin_anew", fail)
        for _ in range(3):
            assert not take_turns(bench)
    assert bench.store.counted == []
    assert take_turns(bench, force=True)
    assert bench.store.counted == usage_rows(2)


def test_rows_that_are_in_no_segment_are_added_up_at_once_and_once(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, logged_failures: Any
) -> None:
    bench = make_bench()
    bench.spool.open()
    bench.store.flushes = False
    bench.put(*usage_rows(2))
    assert take_turns(bench)

    def write(segment: Segment, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Segment, "write", write)
    bench.put(*usage_rows(3, 2))
    bench.store.sums_unavailable = True
    for _ in range(3):
        assert not take_turns(bench)
    # They are only in memory, so they are not given up before all is done.
    assert bench.spool.unsaved == 3
    bench.store.sums_unavailable = False
    assert take_turns(bench)
    assert bench.store.counted == usage_rows(5)
    assert bench.spool.unsaved == 0
    logged_failures.flush()
