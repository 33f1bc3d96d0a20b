"""The spool of a queue: what waits outlives the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.observability.delivery.fakes import RecordingDestination, ThreadsClock
from twisted_vllm.observability.delivery.interfaces import MIB, Bounds, DeliveryFailed, SpoolFull
from twisted_vllm.observability.delivery.queue import DeliveryQueue
from twisted_vllm.observability.delivery.spool import DiskSpool

AWAY = DeliveryFailed("it is away", retryable=True)


def make_spool(directory: Path, max_bytes: int = 16 * MIB) -> DiskSpool[bytes]:
    return DiskSpool(directory, max_bytes, bytes, bytes)


class Gateway:
    """One run of a queue with a spool."""

    def __init__(
        self,
        directory: Path,
        *answers: DeliveryFailed | Deferred[None],
        bounds: Bounds | None = None,
        max_bytes: int = 16 * MIB,
    ) -> None:
        self.clock = ThreadsClock()
        self.destination = RecordingDestination(*answers)
        self.spool = make_spool(directory, max_bytes)
        self.queue = DeliveryQueue(
            "sink a", self.destination, self.clock, bounds or Bounds(), lambda: 0.5, spool=self.spool
        )
        self.queue.start()

    def put(self, *items: bytes) -> list[bool]:
        return [self.queue.put(item, len(item)) for item in items]

    def kill(self) -> None:
        """End as by kill -9: only the locks are gone."""
        for claim in {file.claim for file in self.spool._files} | {self.spool._claim}:
            if claim is not None and claim._descriptor is not None:
                os.close(claim._descriptor)
                claim._descriptor = None


def numbered(count: int) -> list[bytes]:
    return [b'{"n":%d}' % number for number in range(count)]


def test_items_outlive_a_kill_and_are_delivered_by_the_next_run(tmp_path: Path) -> None:
    killed = Gateway(tmp_path, *[AWAY] * 9)
    killed.put(*numbered(5), b"two\nlines", b"back\\nslash\\")
    killed.clock.pass_time(5)
    killed.kill()
    following = Gateway(tmp_path)
    following.clock.pass_time(1)
    assert following.destination.items == [*numbered(5), b"two\nlines", b"back\\nslash\\"]
    assert following.queue.queued == 0


def test_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "sinks" / "a")
    gateway.put(b"a")
    assert (tmp_path / "sinks" / "a").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "sinks" / "a").iterdir()} == {0o600}


def test_what_was_delivered_is_not_delivered_again_after_a_kill(tmp_path: Path) -> None:
    killed = Gateway(tmp_path, bounds=Bounds(batch_items=2))
    killed.put(*numbered(4))
    killed.clock.pass_time(3)
    hangs: Deferred[None] = Deferred()
    killed.destination.answers = [hangs]
    killed.put(b"x", b"y", b"z")
    killed.clock.pass_time(1.2)
    killed.kill()
    following = Gateway(tmp_path)
    following.clock.pass_time(1)
    assert following.destination.items == [b"x", b"y", b"z"]


def test_more_than_memory_holds_waits_on_disk_and_comes_in_order(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, *[AWAY] * 3, bounds=Bounds(max_items=10, batch_items=8))
    assert all(gateway.put(*numbered(300)))
    assert gateway.queue.queued == 300
    gateway.clock.pass_time(12)
    assert gateway.destination.items == numbered(300)
    assert (gateway.queue.queued, gateway.queue.dropped, gateway.queue.delivered) == (0, 0, 300)


def test_the_size_on_disk_is_bounded_and_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, *[AWAY] * 99, bounds=Bounds(max_items=4), max_bytes=4096)
    taken = gateway.put(*[b"x" * 100] * 100)
    assert 20 < sum(taken) < 50
    assert gateway.queue.dropped == 100 - sum(taken)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4096 + 64
    gateway.destination.answers = []
    gateway.clock.pass_time(130)
    assert len(gateway.destination.items) == sum(taken)
    assert gateway.put(b"room again") == [True]


def test_files_go_once_they_were_delivered(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, max_bytes=8192)
    for _ in range(40):
        gateway.put(*[b"x" * 100] * 10)
        gateway.clock.pass_time(2)
    assert gateway.queue.delivered == 400
    gateway.clock.pass_time(61, step=1)
    assert gateway.queue.spool_bytes < 2048
    gateway.queue.stop(1.0)
    gateway.clock.pass_time(0.3)
    assert not list(tmp_path.iterdir())


def test_what_is_left_at_a_stop_stays_for_the_next_run(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, *[AWAY] * 9)
    gateway.put(b"a", b"b")
    gateway.clock.pass_time(2)
    gateway.queue.stop(1.0)
    gateway.clock.pass_time(2)
    assert gateway.queue.dropped == 0
    following = Gateway(tmp_path)
    following.clock.pass_time(1)
    assert following.destination.items == [b"a", b"b"]


def test_a_running_process_takes_over_what_another_left_within_a_minute(tmp_path: Path) -> None:
    running, killed = Gateway(tmp_path), Gateway(tmp_path, *[AWAY] * 9)
    killed.put(b"left")
    running.clock.pass_time(5)
    killed.kill()
    assert not running.destination.items
    running.clock.pass_time(70, step=1)
    assert running.destination.items == [b"left"]


def test_another_running_process_keeps_its_own(tmp_path: Path) -> None:
    first = Gateway(tmp_path, *[AWAY] * 99)
    first.put(b"mine")
    second = Gateway(tmp_path)
    second.clock.pass_time(130, step=1)
    assert second.destination.items == []


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_end_costs_only_what_is_damaged(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    killed = Gateway(directory, *[AWAY] * 9)
    killed.put(*numbered(20))
    killed.kill()
    (path,) = directory.glob("*.spool")
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    garbage = data.draw(st.binary(max_size=40))
    path.write_bytes(whole[:cut] + garbage)
    following = Gateway(directory)
    following.clock.pass_time(1)
    found = following.destination.items
    assert found == numbered(20)[: len(found)]
    # a line lost its newline, or is cut
    assert len(found) >= whole[:cut].count(b"\n") - 2
    following.queue.stop(1.0)
    following.clock.pass_time(0.3)
    assert not list(directory.iterdir())


def test_a_damaged_line_between_others_is_left_out(tmp_path: Path) -> None:
    killed = Gateway(tmp_path, *[AWAY] * 9)
    killed.put(*numbered(9))
    killed.kill()
    (path,) = tmp_path.glob("*.spool")
    path.write_bytes(path.read_bytes().replace(b'{"n":4}', b'{"n":X}'))
    following = Gateway(tmp_path, bounds=Bounds(batch_items=3))
    following.clock.pass_time(2)
    assert following.destination.items == [item for item in numbered(9) if item != b'{"n":4}']
    assert following.spool.damaged == 1


def test_a_file_of_a_newer_version_is_left_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "00ff-000001.spool").write_bytes(b"vllm-passthrough-spool 99\nwhat\n")
    gateway = Gateway(tmp_path)
    gateway.clock.pass_time(1)
    gateway.put(b"a")
    gateway.clock.pass_time(2)
    assert gateway.destination.items == [b"a"]
    assert (tmp_path / "00ff-000001.spool").exists()


def test_a_disk_that_fails_leaves_items_in_memory_alone(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    gateway = Gateway(directory, *[AWAY] * 2)
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    assert gateway.put(b"a") == [True]
    gateway.clock.pass_time(6)
    assert gateway.destination.items == [b"a"]


def test_a_spool_that_cannot_be_opened_leaves_a_queue_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    gateway = Gateway(tmp_path / "file")
    gateway.put(b"a")
    gateway.clock.pass_time(2)
    assert gateway.destination.items == [b"a"]


def test_a_closed_spool_takes_nothing(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    with pytest.raises(SpoolFull):
        spool.append(b"a", 1.0, has_room=True)


@settings(max_examples=40, deadline=None)
@given(
    items=st.lists(st.binary(max_size=60), max_size=60),
    kills=st.lists(st.integers(0, 60), max_size=3),
    fails=st.lists(st.booleans(), max_size=12),
)
def test_no_item_is_lost_whenever_the_process_is_killed(
    tmp_path_factory: pytest.TempPathFactory, items: list[bytes], kills: list[int], fails: list[bool]
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    delivered: list[bytes] = []
    bounds = Bounds(max_items=5, batch_items=3, linger=0.5)
    position = 0
    for end in [*sorted(kills), len(items)]:
        gateway = Gateway(directory, *[AWAY for failed in fails if failed], bounds=bounds)
        for item in items[position:end]:
            gateway.put(item)
            gateway.clock.pass_time(0.1)
        position = max(position, min(end, len(items)))
        gateway.kill()
        delivered += gateway.destination.items
    last = Gateway(directory, bounds=bounds)
    last.clock.pass_time(20)
    delivered += last.destination.items
    assert set(delivered) == set(items)
    assert len(delivered) >= len(items)
