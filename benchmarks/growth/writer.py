"""``python -m benchmarks.growth.writer``: what the ledger's writer takes for a row, without HTTP.

Rows of many keys go through a spool and the writer's threads into a database, at the pace of a busy gateway. The CPU
time is that of the process without the thread that makes the rows. One JSON object is printed.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import attrs
import msgspec

from benchmarks.growth.ledger import open_store
from benchmarks.growth.population import Population, Size
from benchmarks.growth.traffic import Spread, Traffic
from benchmarks.options import number, whole
from benchmarks.peers import REPOSITORY
from benchmarks.processes import CannotStart, environment
from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.following_writer import FollowingWriter
from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.writer import LedgerWriter
from twisted_vllm.usage.spool.writer_threads import WriterThreads

#: rows that may wait before no more are made: what the spool keeps in memory
_MOST_WAITING = 8_000
_TURN_SECONDS = 0.02
_GRACE_SECONDS = 600.0
#: rows of one turn of a busy gateway
_FLUSHED_ROWS = 20


class RowCost(msgspec.Struct, frozen=True):
    """What rows cost.

    Attributes:
        rows: how many were written.
        seconds: how long that took.
        cpu_us: CPU microseconds of the writer's threads for a row.
    """

    rows: int
    seconds: float
    cpu_us: float


class _Reactor:
    """As much of a reactor as the writer needs."""

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        """Call at once: what is called only notes what was spent."""
        function(*arguments)


@attrs.frozen
class _Bench:
    """The spools that rows go to, by turns, and their writer."""

    spools: Sequence[FollowedSpool]
    writer: WriterThreads

    @property
    def waiting(self) -> int:
        """How many rows the database does not have, about."""
        return self.writer.pending().rows


def _own(url: str, directory: Path) -> _Bench:
    spool = Spool(directory)
    spool.open()
    return _Bench([spool], LedgerWriter(_Reactor(), spool, open_store(url), lambda _spent: None))


def _following(url: str, directory: Path, spools: int) -> _Bench:
    """Return a writer that follows spools of other processes, which are in this one here."""
    own, *followed = [FollowedSpool(directory, group="bench") for _ in range(spools + 1)]
    writer = FollowingWriter(_Reactor(), own, open_store(url), lambda _spent: None, lambda: None)
    own.open()
    for each in followed:
        each.open()
        each.followed_by(own.name)
        writer.follow(each.name)
    return _Bench(followed, writer)


def write_rows(
    url: str, directory: Path, size: Size, named: float, rate: int, seconds: float, followed: int = 0
) -> RowCost:
    """Write rows of all keys of a size for so many seconds, and all that is left.

    Args:
        url: a migrated database.
        directory: for the spool.
        size: whose rows.
        named: the share of the rows with an end user.
        rate: rows a second, at most.
        seconds: how long rows are made.
        followed: how many spools of other processes the writer follows; 0 for a process that writes its own rows.
    """
    traffic = Traffic(Population(size), Spread(named=named), seed=int(time.time()))
    # what is made once for each key is not made meanwhile
    traffic.rows(time.time(), time.time(), 2 * size.keys)
    bench = _following(url, directory, followed) if followed else _own(url, directory)
    writer, spools = bench.writer, cycle(bench.spools)
    pause = threading.Event()
    process, own = time.process_time(), time.thread_time()
    writer.start()
    began = last = time.monotonic()
    rows, due = 0, 0.0
    while last < began + seconds:
        pause.wait(_TURN_SECONDS)
        now = time.monotonic()
        due, last = min(due + (now - last) * rate, rate), now
        count = int(due)
        if count and bench.waiting < _MOST_WAITING:
            ended = time.time()
            made = traffic.rows(ended - _TURN_SECONDS, ended, count)
            for start in range(0, count, _FLUSHED_ROWS):
                spool = next(spools)
                for row in made[start : start + _FLUSHED_ROWS]:
                    spool.append(row)
                spool.flush()
            rows, due = rows + count, due - count
    for each in bench.spools:
        if followed:
            each.close()
    while writer.batch_writer.committed < rows and time.monotonic() < last + _GRACE_SECONDS:
        pause.wait(_TURN_SECONDS)
    done = threading.Event()
    writer.stop().addBoth(lambda _: done.set())
    done.wait()
    used = time.process_time() - process - (time.thread_time() - own)
    written = writer.batch_writer.committed
    return RowCost(written, time.monotonic() - began, used / max(written, 1) * 1e6)


def measure_writer(url: str, directory: Path, size: Size, *, named: float, rate: int, seconds: float) -> RowCost:
    """Do the same in a new process.

    Raises:
        CannotStart: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.growth.writer", url, str(directory)]
    command += [f"--keys={size.keys}", f"--users={size.users}", f"--teams={size.teams}"]
    command += [f"--end-users={size.end_users}", f"--named={named}", f"--rate={rate}", f"--seconds={seconds}"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds + 2 * _GRACE_SECONDS,
        check=False,
    )
    if done.returncode:
        raise CannotStart(f"the writer failed: {done.stderr[-1000:]}")
    return msgspec.json.decode(done.stdout, type=RowCost)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth.writer")
    add, most = parser.add_argument, 10_000_000
    add("url")
    add("directory", type=Path)
    for name, default in (("keys", 1), ("users", 0), ("teams", 0), ("end-users", 0), ("rate", 10_000)):
        add(f"--{name}", type=whole(0, most), default=default)
    add("--named", type=number(0, 1), default=0.0)
    add("--seconds", type=number(0.1, 3600), default=10.0)
    add("--followed", type=whole(0, 64), default=0)
    chosen = parser.parse_args(arguments)
    size = Size(chosen.keys, chosen.users, chosen.teams, chosen.end_users, 0)
    # as the gateway does
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    cost = write_rows(chosen.url, chosen.directory, size, chosen.named, chosen.rate, chosen.seconds, chosen.followed)
    print(msgspec.json.encode(cost).decode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
