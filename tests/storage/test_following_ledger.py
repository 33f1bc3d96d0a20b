"""One writer of many spools against a model: whatever fails or ends, all sums and spend are those of the rows."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.storage.test_spool_accounts import Failing, row_of
from tests.storage.usage_contract import Ledger, check_spend, check_sums, expected_sums, grouped, stored_sums
from twisted_vllm.storage.usage import spool_accounts
from twisted_vllm.storage.usage.account import Rhythm
from twisted_vllm.storage.usage.tables import usage_marks
from twisted_vllm.usage.interfaces import SpendUpdate
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool import writer_threads
from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.following_writer import FollowingWriter


class AtOnce:
    """As much of a reactor as the writer needs."""

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        function(*arguments)


class FollowingMachine(RuleBasedStateMachine):
    """Workers that begin and end, and housekeepers of which one follows the other. Turns are made in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(spool_accounts, "_TRANSACTION_ROWS", 7)
        self.patch.setattr(spool_accounts, "SPEND_RHYTHM", Rhythm(2.0, 0.5, 20, 40))
        self.patch.setattr(spool_accounts, "SUMS_RHYTHM", Rhythm(30.0, 5.0, 60, 100))
        self.patch.setattr(writer_threads, "PAUSE", 0.0)
        self.patch.setattr(writer_threads, "PAUSE_SHARE", 0.0)
        self.ledger = Ledger(f"sqlite:///{self.directory}/usage.sqlite")
        self.spools = self.directory / "spool"
        self.seconds = 0.0
        self.number = 0
        self.rows: list[UsageRow] = []
        self.told: Counter[str] = Counter()
        self.workers: list[FollowedSpool] = []
        self.housekeeper: FollowedSpool | None = None
        self.begin_housekeeper()
        for _ in range(3):
            self.begin_worker()

    def _told(self, updates: Sequence[SpendUpdate]) -> None:
        self.told.update({each.id: each.amount for each in updates if each.kind == "key"})

    def begin_housekeeper(self) -> None:
        self.database = self.ledger.another(monotonic=lambda: self.seconds)
        self.failing = Failing(self.database)
        self.housekeeper = FollowedSpool(self.spools, monotonic=lambda: self.seconds)
        self.housekeeper.open()
        self.writer = FollowingWriter(AtOnce(), self.housekeeper, self.database, self._told, lambda: None)
        self.writer.follow(self.housekeeper.name)
        for each in self.workers:
            each.followed_by(self.housekeeper.name)
            self.writer.follow(each.name)

    def turn(self, *, force: bool = False) -> bool:
        self.writer._next_recovery = 0.0
        return self.writer.move_all(force=force)

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def begin_worker(self) -> None:
        spool = FollowedSpool(self.spools, segment_bytes=3_000, monotonic=lambda: self.seconds)
        spool.open()
        assert self.housekeeper is not None
        spool.followed_by(self.housekeeper.name)
        self.workers.append(spool)
        self.writer.follow(spool.name)

    @precondition(lambda self: self.workers)
    @rule(counts=st.lists(st.integers(0, 15), min_size=1, max_size=4), seconds=st.floats(0, 40))
    def put(self, counts: list[int], seconds: float) -> None:
        """Workers serve, each another number of requests."""
        self.seconds += seconds
        for spool, count in zip(self.workers, counts, strict=False):
            for number in range(self.number, self.number + count):
                self.rows.append(row_of(number))
                spool.append(self.rows[-1])
            self.number += count
            spool.flush()

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 3))
    def sync(self, which: int) -> None:
        self.workers[which % len(self.workers)].sync()

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 3))
    def end_worker(self, which: int) -> None:
        """It is killed: its lock is free, and nothing else is done."""
        spool = self.workers.pop(which % len(self.workers))
        assert spool._claim is not None
        assert spool._claim._descriptor is not None
        os.close(spool._claim._descriptor)

    @rule(seconds=st.floats(0, 40))
    def move(self, seconds: float) -> None:
        self.seconds += seconds
        self.turn()

    @rule(kind=st.sampled_from(["statements", "commits", "lost"]), after=st.integers(0, 40), force=st.booleans())
    def move_with_a_fault(self, kind: str, after: int, *, force: bool) -> None:
        """The writer lives on, and asks the database what became of its transaction."""
        self.seconds += 40
        setattr(self.failing, kind, after)
        self.turn()
        self.failing.clear()
        if force:
            self.turn()

    @rule(kind=st.sampled_from(["statements", "commits", "lost", ""]), after=st.integers(0, 40))
    def kill_housekeeper(self, kind: str, after: int) -> None:
        """It ends at any statement, and another begins."""
        self.seconds += 40
        if kind:
            setattr(self.failing, kind, after)
            self.turn()
        self.database.close()
        self.writer._recovery.close()
        for each in self.writer._spools.values():
            each.close()
        assert self.housekeeper is not None
        self.housekeeper.close()
        self.begin_housekeeper()

    @rule()
    def hold_and_move_to_the_ends(self) -> None:
        """As after a death: nothing is told, and the database has exactly the rows up to the positions."""
        assert self.housekeeper is not None
        told = self.told.copy()
        ends = {each.name: each.end for each in (*self.workers, self.housekeeper)}
        assert self.writer._have_ended((), 0.0)
        assert self.writer._move_to(ends)
        assert stored_sums(self.ledger) == {key: expected_sums(each) for key, each in grouped(self.rows).items()}
        check_spend(self.ledger, self.rows)
        assert self.told == told

    def teardown(self) -> None:
        for worker in self.workers:
            worker.close()
        self.workers.clear()
        assert self.housekeeper is not None
        for _ in range(20):
            self.seconds += 40
            if self.turn():
                break
        assert self.turn(force=True)
        costs: Counter[str] = Counter()
        for row in self.rows:
            costs[f"k{int(row.id[8:], 16) % 11}"] += row.cost
        assert all(amount <= costs[name] for name, amount in self.told.items())
        check_sums(self.ledger, self.rows)
        check_spend(self.ledger, self.rows)
        assert self.ledger.read(usage_marks) == []
        self.housekeeper.close()
        assert list(self.spools.iterdir()) == []
        self.database.close()
        self.ledger.close()
        self.patch.undo()
        shutil.rmtree(self.directory)


FollowingMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=14,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestFollowing = FollowingMachine.TestCase
