"""The spool of a living process is read while it grows, and nothing that it may still write to is removed."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs as captured_logs

from tests.builders import usage_row, usage_rows
from tests.conftest import LoggedFailures
from twisted_vllm.usage.interfaces import BEGINNING, Position
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool import format as spool_format
from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.follower import SpoolFollower
from twisted_vllm.usage.spool.format import LINE_ROWS, encode_rows, header_line
from twisted_vllm.usage.spool.segments import Segment, claim_new, claim_orphans, segments_by_name

END = Position(10**9, 0)


class Clock:
    """A monotonic clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spool(tmp_path: Path, clock: Clock) -> Iterator[FollowedSpool]:
    spool = FollowedSpool(tmp_path, segment_bytes=2_000, monotonic=clock)
    spool.open()
    yield spool
    spool.close()


@pytest.fixture
def follower(spool: FollowedSpool) -> Iterator[SpoolFollower]:
    follower = SpoolFollower(spool.directory, spool.name)
    yield follower
    follower.close()


def put(spool: FollowedSpool, *rows: UsageRow) -> None:
    for row in rows:
        spool.append(row)
    spool.flush()


def look(follower: SpoolFollower, spool: FollowedSpool) -> None:
    follower.look(segments_by_name(spool.directory).get(follower.name, []))


def read(follower: SpoolFollower, spool: FollowedSpool, until: Position | None = None) -> list[UsageRow]:
    look(follower, spool)
    found: list[UsageRow] = []
    while (part := follower.read(7, until)) is not None:
        assert not part.damaged
        found += part.rows
    return found


def files(spool: FollowedSpool) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in spool.directory.glob("*.spool"))


def test_rows_are_read_as_they_come_and_each_once(spool: FollowedSpool, follower: SpoolFollower) -> None:
    put(spool, *usage_rows(3))
    assert read(follower, spool) == usage_rows(3)
    assert read(follower, spool) == []
    for number in range(3, 60):
        put(spool, usage_row(number))
    assert len(files(spool)) > 3
    assert follower.bytes_left == 0
    look(follower, spool)
    assert follower.bytes_left > 10_000
    assert read(follower, spool) == usage_rows(57, 3)
    assert follower.bytes_left == 0
    assert follower.position == spool.end


def test_what_was_written_is_in_no_memory(spool: FollowedSpool) -> None:
    put(spool, *usage_rows(100))
    held = [value for value in vars(spool).values() if isinstance(value, (list, dict, set)) and value]
    assert held == []
    assert spool.written == 100


@given(st.integers(0, 3_000))
def test_half_a_line_waits_for_its_other_half(size: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        data = header_line() + encode_rows(usage_rows(2)) + encode_rows(usage_rows(3, 2))
        path = directory / "a1-000001.spool"
        path.write_bytes(data[:size])
        follower = SpoolFollower(directory, "a1")
        found: list[UsageRow] = []
        for content in (data[:size], data):
            path.write_bytes(content)
            follower.look([1])
            while (part := follower.read(100)) is not None:
                assert not part.damaged
                found += part.rows
        assert found == usage_rows(5)


def test_the_newest_segment_of_a_living_process_stays(spool: FollowedSpool, follower: SpoolFollower) -> None:
    put(spool, *usage_rows(3))
    read(follower, spool)
    follower.release(END)
    assert files(spool) == ["000001.spool"]
    for number in range(3, 30):
        put(spool, usage_row(number))
    read(follower, spool)
    follower.release(END)
    assert len(files(spool)) == 1
    put(spool, usage_row(30))
    assert read(follower, spool) == [usage_row(30)]


def test_a_segment_stays_until_what_it_adds_up_to_is_written(spool: FollowedSpool, follower: SpoolFollower) -> None:
    for number in range(30):
        put(spool, usage_row(number))
    before = files(spool)
    read(follower, spool)
    follower.release(Position(1, 500))
    assert files(spool) == before
    follower.release(Position(2, 10))
    assert files(spool) == before[1:]


def test_an_old_segment_with_rows_is_followed_by_a_new_one_and_can_go(
    spool: FollowedSpool, follower: SpoolFollower, clock: Clock
) -> None:
    clock.now = 1000.0
    spool.sync()
    assert files(spool) == ["000001.spool"]
    put(spool, usage_row(1))
    put(spool, usage_row(2))
    assert read(follower, spool) == usage_rows(2, 1)
    clock.now = 2000.0
    spool.sync()
    read(follower, spool)
    follower.release(END)
    assert files(spool) == ["000003.spool"]
    assert read(follower, spool) == []
    assert spool.end == follower.position


def test_rows_are_read_up_to_a_position(spool: FollowedSpool, follower: SpoolFollower) -> None:
    put(spool, *usage_rows(3))
    middle = spool.end
    for number in range(3, 30):
        put(spool, usage_row(number))
    assert read(follower, spool, middle) == usage_rows(3)
    assert read(follower, spool, middle) == []
    assert read(follower, spool, BEGINNING) == []
    assert read(follower, spool) == usage_rows(27, 3)


def test_what_a_process_left_is_read_to_the_end_and_removed(spool: FollowedSpool, follower: SpoolFollower) -> None:
    put(spool, *usage_rows(3))
    assert not follower.try_to_claim()
    name = spool.name
    spool.close()
    with (spool.directory / f"{name}-000001.spool").open("ab") as file:
        file.write(b"half a li")
    assert follower.try_to_claim()
    look(follower, spool)
    assert not follower.is_read
    part = follower.read(100)
    assert part is not None
    assert (part.rows, part.damaged) == (usage_rows(3), [b"half a li"])
    assert follower.read(100) is None
    assert follower.is_read
    follower.remove_all()
    follower.close()
    assert os.listdir(spool.directory) == []


def test_a_process_that_ended_without_a_row_leaves_nothing(spool: FollowedSpool) -> None:
    spool.close()
    assert os.listdir(spool.directory) == []


def test_reading_begins_where_the_database_is(spool: FollowedSpool, follower: SpoolFollower) -> None:
    for number in range(30):
        put(spool, usage_row(number))
    read(follower, spool)
    again = follower.again()
    look(again, spool)
    again.begin(Position(2, len(header_line())))
    assert read(again, spool)[-1] == usage_row(29)
    again.release(BEGINNING)
    assert files(spool)[0] == "000002.spool"
    # The segment of the mark may be gone, all of it is in the database.
    with captured_logs() as events:
        third = follower.again()
        look(third, spool)
        third.begin(Position(1, 5_000))
        assert usage_row(29) in read(third, spool)
    assert events == []


def test_a_disk_that_fails_in_the_middle_of_many_rows_leaves_no_row_twice(
    spool: FollowedSpool,
    follower: SpoolFollower,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    logged_failures: LoggedFailures,
) -> None:
    """What was read of a write that failed is not written again."""
    seen: list[UsageRow] = []
    real = os.write
    budget = [3 * LINE_ROWS * 300]

    def write(descriptor: int, data: bytes) -> int:
        if budget[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, bytes(data[: budget[0]]))
        budget[0] -= written
        # Whoever reads now sees a part of the write.
        seen.extend(read(follower, spool))
        return written

    monkeypatch.setattr(os, "write", write)
    put(spool, *usage_rows(5 * LINE_ROWS))
    assert not spool.healthy
    assert seen
    assert spool.unsaved == 5 * LINE_ROWS - spool.written
    budget[0] = 10**9
    clock.now += 10
    spool.flush()
    seen += read(follower, spool)
    assert seen == usage_rows(5 * LINE_ROWS)
    logged_failures.flush()


def test_a_segment_that_somebody_removes_is_noticed_by_both(
    spool: FollowedSpool, follower: SpoolFollower, logged_failures: LoggedFailures
) -> None:
    put(spool, *usage_rows(3))
    read(follower, spool)
    put(spool, usage_row(3))
    (spool.directory / f"{spool.name}-000001.spool").unlink()
    with captured_logs() as events:
        spool.sync()
        put(spool, usage_row(4))
        assert read(follower, spool) == [usage_row(4)]
    assert spool.lost == 4
    assert [event["log_level"].name for event in events] == ["critical", "critical"]
    logged_failures.flush()


def test_a_newer_format_is_left_for_a_newer_version(
    spool: FollowedSpool,
    follower: SpoolFollower,
    monkeypatch: pytest.MonkeyPatch,
    logged_failures: LoggedFailures,
) -> None:
    put(spool, usage_row(1))
    monkeypatch.setattr(spool_format, "VERSION", 1)
    with captured_logs() as events:
        assert read(follower, spool) == []
        assert read(follower, spool) == []
    assert [event["version"] for event in events] == [2]
    assert files(spool) == ["000001.spool"]
    logged_failures.flush()


@pytest.mark.parametrize(("follower_lives", "taken"), [(True, False), (False, True)])
def test_who_follows_a_spool_takes_it_over_and_nobody_else(
    tmp_path: Path, *, follower_lives: bool, taken: bool
) -> None:
    housekeeper = claim_new(tmp_path, os.urandom)
    worker = FollowedSpool(tmp_path)
    worker.open()
    name = worker.name
    worker.followed_by(housekeeper.name)
    put(worker, usage_row(1))
    worker.close()
    if not follower_lives:
        (tmp_path / f"{housekeeper.name}-000001.spool").touch()
        housekeeper.release()
    claimed = claim_orphans(tmp_path, ())
    assert (name in {each.name for each in claimed}) is taken
    for each in claimed:
        each.release()
    # it is its own
    [mine] = claim_orphans(tmp_path, {housekeeper.name}, own=housekeeper.name)
    assert mine.name == name
    mine.release()
    housekeeper.release()


def test_a_segment_of_no_row_is_not_needed_by_anybody(spool: FollowedSpool, tmp_path: Path) -> None:
    for number in (1, 2):
        Segment(number, tmp_path / f"b2-{number:06d}.spool", 0.0).close()
    follower = SpoolFollower(tmp_path, "b2")
    look(follower, spool)
    assert follower.read(10) is None
    follower.release(BEGINNING)
    assert [path.name for path in tmp_path.glob("b2-*")] == ["b2-000002.spool"]


def test_siblings_are_no_other_gateway(tmp_path: Path) -> None:
    housekeeper, worker, early, other = (FollowedSpool(tmp_path, group=group) for group in ("7", "7", "7", ""))
    for each in (housekeeper, worker, early, other):
        each.open()
    worker.followed_by(housekeeper.name)
    assert housekeeper.other_processes() == 1
    assert other.other_processes() == 3
    for each in (housekeeper, worker, early, other):
        each.close()
    assert os.listdir(tmp_path) == []
