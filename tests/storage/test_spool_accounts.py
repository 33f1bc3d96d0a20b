"""Accounts against a model: whatever fails, every sum, look-up and spend is that of the rows, and is told once."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from tests.builders import NOON, usage_row
from tests.conftest import LoggedFailures
from tests.storage.usage_contract import (
    DAY,
    Ledger,
    check_spend,
    check_sums,
    expected_sums,
    flush_all,
    grouped,
    stored_sums,
)
from twisted_vllm.storage.tables import spend
from twisted_vllm.storage.usage import spool_accounts
from twisted_vllm.storage.usage.account import Rhythm
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.storage.usage.gathered import SHARDS, GatheredSums, shard_of
from twisted_vllm.storage.usage.marks import FORGOTTEN_SECONDS
from twisted_vllm.storage.usage.spool_accounts import SpoolAccounts
from twisted_vllm.storage.usage.steps import _DIMENSIONS, in_table_order
from twisted_vllm.storage.usage.tables import name_id, usage_marks
from twisted_vllm.usage.interfaces import BEGINNING, DatabaseUnavailable, HistoryChanged, Position, RowsRejected
from twisted_vllm.usage.records import UsageRow


class Failing:
    """Makes a database's connections fail at a statement or at a commit, which may have happened or not."""

    def __init__(self, database: UsageDatabase) -> None:
        self.statements: int | None = None
        self.commits: int | None = None
        self.lost: int | None = None
        engine = database._engine
        event.listen(engine, "before_cursor_execute", self._statement)
        event.listen(engine, "commit", self._commit)
        self._engine = engine

    def clear(self) -> None:
        self.statements = self.commits = self.lost = None

    def _statement(self, *_arguments: object) -> None:
        if self.statements is not None:
            self.statements -= 1
            if self.statements < 0:
                raise _failure("the connection broke")

    def _commit(self, connection: Connection) -> None:
        if self.commits is not None:
            self.commits -= 1
            if self.commits < 0:
                raise _failure("the connection broke before the commit")
        if self.lost is not None:
            self.lost -= 1
            if self.lost < 0:
                driver: Any = connection.connection.driver_connection
                driver.commit()
                raise _failure("the connection broke after the commit")


def _failure(text: str) -> OperationalError:
    return OperationalError("", {}, Exception(text))


def copy(source: Path, to: Path) -> None:
    """Copy a database of SQLite that may be open."""
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(to)) as other:
        one.backup(other)


def row_of(number: int) -> UsageRow:
    """Return a row that its number determines: of two months, many keys, and every kind of name."""
    return usage_row(
        number,
        time=(NOON + (number % 3) * 20 * DAY) * 1_000_000 + number,
        key_id=f"k{number % 11}",
        user_id=f"u{number % 5}" if number % 2 else None,
        team_id=f"t{number % 3}" if number % 3 else None,
        organization_id="acme" if number % 4 == 0 else None,
        end_user=f"e{number % 17}" if number % 5 else None,
        tags=("own", "x")[: number % 3],
        request_tags=("own", f"r{number % 7}")[: number % 3],
        model=f"m{number % 2}",
        status=500 if number % 9 == 0 else 200,
        cost=number % 4 * 1000,
    )


class AccountsMachine(RuleBasedStateMachine):
    """One process with a spool, whose rows are a list. A position is the number of rows before it."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(spool_accounts, "_TRANSACTION_ROWS", 7)
        self.patch.setattr(spool_accounts, "SPEND_RHYTHM", Rhythm(2.0, 0.5, 20, 40))
        self.patch.setattr(spool_accounts, "SUMS_RHYTHM", Rhythm(30.0, 5.0, 60, 100))
        self.ledger = Ledger(f"sqlite:///{self.directory}/usage.sqlite")
        self.seconds = 0.0
        self.number = 0
        #: rows of the spools by name: each batch with its rows
        self.spools: dict[str, list[list[UsageRow]]] = {}
        self.names = 0
        #: rows of spools of which nothing is left
        self.done: list[UsageRow] = []
        self.snapshot: Path | None = None
        self.was_restored = False
        self.restarted()

    def restarted(self) -> None:
        """Begin as a process with an empty spool."""
        self.names += 1
        self.name = f"spool{self.names}"
        self.spools[self.name] = []
        self.database = self.ledger.another(monotonic=lambda: self.seconds)
        self.failing = Failing(self.database)
        self.accounts: SpoolAccounts = self.database.open_accounts(self.name, own=True)
        self.told: Counter[str] = Counter()

    def flush(self, *, force: bool) -> bool:
        try:
            more, updates = self.accounts.flush(force=force)
        except HistoryChanged:
            assert self.was_restored
            self.begin_anew()
            return True
        self.told.update({update.id: update.amount for update in updates if update.kind == "key"})
        return more

    def begin_anew(self) -> None:
        """Write under a new name, and read what was written under the former one again."""
        former, told_to = self.name, self.accounts.told_to
        self.database.close()
        self.restarted()
        self.recover_name(former, 0, 10**9, own=True, told_to=told_to)

    @rule()
    def make_a_copy(self) -> None:
        self.snapshot = self.directory / "copy"
        shutil.rmtree(self.snapshot, ignore_errors=True)
        self.snapshot.mkdir()
        for path in self.directory.rglob("*"):
            if path.suffix in (".sqlite", ".db") and self.snapshot not in path.parents:
                copy(path, self.snapshot / path.name)

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def restore_the_copy(self) -> None:
        """The spools have all rows since then: none was given up."""
        assert self.snapshot is not None
        self.was_restored = True
        for path in self.snapshot.iterdir():
            there = self.directory if path.suffix == ".sqlite" else self.directory / "usage.sqlite-usage"
            copy(path, there / path.name)
        self.database.forget_references()

    @rule(count=st.integers(0, 30), seconds=st.floats(0, 40))
    def rows(self, count: int, seconds: float) -> None:
        """Move a batch, which is gathered once it is stored. Its size may be 0: all of it was rejected."""
        self.seconds += seconds
        batch = [row_of(number) for number in range(self.number, self.number + count)]
        self.number += count
        spool = self.spools[self.name]
        spool.append(batch)
        written = [self.database.write(batch)] if batch else []
        self.accounts.add(written, Position(1, len(spool)))

    @rule(parts=st.integers(1, 30), force=st.booleans())
    def flush_parts(self, parts: int, force: bool) -> None:
        for _ in range(parts):
            if not self.flush(force=force):
                break

    @rule(kind=st.sampled_from(["statements", "commits", "lost"]), after=st.integers(0, 40), parts=st.integers(1, 5))
    def flush_with_a_fault(self, kind: str, after: int, parts: int) -> None:
        """The process lives on, and asks the database what became of its transaction."""
        setattr(self.failing, kind, after)
        try:
            for _ in range(parts):
                if not self.flush(force=True):
                    break
        except DatabaseUnavailable:
            pass
        self.failing.clear()

    @rule(kind=st.sampled_from(["statements", "commits", "lost"]), after=st.integers(0, 40), parts=st.integers(1, 20))
    def crash(self, kind: str, after: int, parts: int) -> None:
        """The process ends at any statement; another one takes the spool over, now or later."""
        setattr(self.failing, kind, after)
        try:
            for _ in range(parts):
                self.accounts.flush(force=True)
        except (DatabaseUnavailable, HistoryChanged):
            pass
        self.database.close()
        self.restarted()

    @precondition(lambda self: len(self.spools) > 1)
    @rule(parts=st.integers(0, 40), batches=st.integers(1, 40))
    def recover(self, parts: int, batches: int) -> None:
        """Read a former spool, perhaps not to its end: the recovering process may end as well."""
        name = next(iter(self.spools))
        self.recover_name(name, parts, batches)

    def recover_name(
        self, name: str, parts: int, batches: int, *, own: bool = False, told_to: Position = BEGINNING
    ) -> None:
        database = self.ledger.another(monotonic=lambda: self.seconds)
        accounts = database.open_accounts(name, own=own, told_to=told_to)
        spool = self.spools[name]
        is_whole = batches >= len(spool)
        for number, batch in enumerate(spool[:batches]):
            accounts.add([database.write(batch)] if batch else [], Position(1, number + 1))
            while accounts.flush()[0]:
                pass
        while (is_whole or parts) and accounts.flush(force=True)[0]:
            parts -= 1
        if is_whole:
            accounts.close()
            del self.spools[name]
            self.done += [row for batch in spool for row in batch]
            # An older state lacks rows that nobody has any more.
            self.snapshot = None
        database.close()

    @invariant()
    def the_database_has_all_up_to_the_mark(self) -> None:
        assert self.accounts.kept_from <= Position(1, len(self.spools[self.name]))

    def teardown(self) -> None:
        """What is left is recovered, and then all is exact."""
        while self.flush(force=True):
            pass
        # The database was restored, and nothing was to be written since.
        if self.was_restored:
            self.begin_anew()
        mine = [row for batch in self.spools[self.name] for row in batch]
        # told exactly once, though commits were unknown
        costs: Counter[str] = Counter()
        for row in mine:
            if row.cost:
                costs[f"k{int(row.id[8:], 16) % 11}"] += row.cost
        assert self.was_restored or +self.told == costs
        self.accounts.close()
        self.database.close()
        self.done += mine
        del self.spools[self.name]
        for name in list(self.spools):
            self.recover_name(name, 0, 10**9)
        if self.was_restored:
            # Look-ups that were written just before their sums began may be missing from the copy.
            sums = {key: expected_sums(members) for key, members in grouped(self.done).items()}
            assert stored_sums(self.ledger) == sums
            check_spend(self.ledger, self.done)
        else:
            check_sums(self.ledger, self.done)
        assert self.ledger.read(usage_marks) == []
        self.ledger.close()
        self.patch.undo()
        shutil.rmtree(self.directory)


AccountsMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestAccounts = AccountsMachine.TestCase


# one by one


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path}/usage.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture
def small_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_accounts, "_TRANSACTION_ROWS", 5)


def batches_of(count: int, size: int = 20) -> list[list[UsageRow]]:
    return [[row_of(number) for number in range(size * each, size * (each + 1))] for each in range(count)]


def add_all(database: UsageDatabase, accounts: Any, batches: list[list[UsageRow]], first: int = 0) -> None:
    for number, batch in enumerate(batches):
        accounts.add([database.write(batch)], Position(1, first + number + 1))


@pytest.mark.usefixtures("small_transactions")
@pytest.mark.parametrize("parts", [1, 5, 12, 30, 60])
def test_another_process_goes_on_where_a_cut_was_half_written(ledger: Ledger, parts: int) -> None:
    batches = batches_of(5)
    accounts = ledger.accounts()
    add_all(ledger.database, accounts, batches[:2])
    for _ in range(parts):
        accounts.flush(force=True)
    # They are gathered beside the cut, and the process ends.
    add_all(ledger.database, accounts, batches[2:4], 2)
    accounts.flush()
    again = ledger.another()
    other = again.open_accounts("mine", own=False)
    for number, batch in enumerate(batches):
        other.add([again.write(batch)], Position(1, number + 1))
        while other.flush()[0]:
            pass
    flush_all(other)
    check_sums(ledger, [row for batch in batches for row in batch])
    again.close()


def test_a_transaction_that_the_server_finished_after_it_was_given_up_is_not_made_again(ledger: Ledger) -> None:
    """Its connection is lost; the mark is still the old one when it is read, and moves a moment later."""
    batches = batches_of(2)
    accounts = ledger.accounts()
    add_all(ledger.database, accounts, batches)
    failing = Failing(ledger.database)
    failing.lost = 0
    with pytest.raises(DatabaseUnavailable):
        accounts.flush(force=True)
    failing.clear()
    # as if it had been read before the server committed
    account = accounts._spend  # type: ignore[attr-defined]
    account.sent = None
    more, updates = accounts.flush(force=True)
    assert more
    assert sum(each.amount for each in updates if each.kind == "key") == sum(
        row.cost for each in batches for row in each
    )
    flush_all(accounts)
    check_sums(ledger, [row for batch in batches for row in batch])


def test_another_database_is_noticed(ledger: Ledger) -> None:
    [batch] = batches_of(1)
    accounts = ledger.accounts()
    add_all(ledger.database, accounts, [batch])
    flush_all(accounts)
    ledger.run(lambda connection: connection.execute(usage_marks.delete()))
    accounts.add([ledger.database.write([row_of(100)])], Position(1, 2))
    with pytest.raises(HistoryChanged):
        accounts.flush(force=True)


def test_an_amount_that_the_database_refuses_holds_up_no_other(ledger: Ledger, logged_failures: LoggedFailures) -> None:
    most = 2**52
    rows = [usage_row(number, key_id=f"k{number}", cost=1) for number in range(30)]
    heavy = usage_row(50, key_id="k7", cost=most, requests=most)
    ledger.write(*rows)
    batch = ledger.database.write([heavy])
    for _ in range(2**11 + 1):
        ledger.accounts().add([batch], None)
    flush_all(ledger.accounts())
    spent = {row["id"]: row["total_spend"] for row in ledger.read(spend)}
    assert spent == {f"k{number}": 1 for number in range(30)}
    assert len(logged_failures.flush()) >= 1
    later = usage_row(99, key_id="k1", cost=5)
    ledger.write(later)
    assert {row["id"]: row["total_spend"] for row in ledger.read(spend)}["k1"] == 6


def test_a_row_whose_numbers_add_up_to_too_much_is_refused(ledger: Ledger) -> None:
    with pytest.raises(RowsRejected):
        ledger.database.write([usage_row(0), usage_row(1, cost=2**56 + 1)])
    with pytest.raises(RowsRejected):
        ledger.database.write([usage_row(0), usage_row(1, end_user="e" * 256)])


def test_rows_of_no_spool_are_added_up_in_one_transaction(
    ledger: Ledger, small_transactions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them would not be found again."""
    [batch] = batches_of(1)
    accounts = ledger.accounts()
    accounts.add([ledger.database.write(batch)], None)
    marks = set()
    while accounts.flush(force=True)[0]:
        marks |= {row["done"] for row in ledger.read(usage_marks)}
    assert marks == {""}
    check_sums(ledger, batch)


def test_look_ups_are_written_in_small_transactions(ledger: Ledger, small_transactions: None) -> None:
    rows = [usage_row(number, request_id="") for number in range(300)]
    accounts = ledger.accounts()
    accounts.add([ledger.database.write(rows)], Position(1, 1))
    sizes: list[int] = []
    write = ledger.database._accounting.write_lookups

    def observed(lookups: Any) -> None:
        sizes.append(len(lookups))
        write(lookups)

    object.__setattr__(ledger.database._accounting, "write_lookups", observed)
    flush_all(accounts)
    assert sum(sizes) == 300
    assert max(sizes) == 5
    check_sums(ledger, rows)


def test_the_rhythm_follows_what_there_is_to_write(ledger: Ledger) -> None:
    seconds = [0.0]
    database = ledger.another(monotonic=lambda: seconds[0])
    accounts = database.open_accounts("timed", own=True)

    def due_after(*rows: UsageRow) -> tuple[float, float]:
        """Return after how many seconds spend and sums begin to be written."""
        began = seconds[0]
        accounts.add([database.write(rows)], Position(1, int(began * 1000) + 1))
        found = []
        for account in (accounts._spend, accounts._sums):
            while not (accounts.flush() and account.gathered.rows == 0):
                seconds[0] += 0.05
            found.append(seconds[0] - began)
        while accounts.flush()[0]:
            pass
        return found[0], found[1]

    few = due_after(usage_row(0, request_id=""))
    assert max(few) < 0.1
    many = due_after(*(usage_row(number, key_id=f"k{number}") for number in range(1, 3_001)))
    assert spool_accounts.SPEND_RHYTHM.seconds * 0.55 < many[0] < spool_accounts.SPEND_RHYTHM.seconds * 1.1
    assert 29 < many[1] < 31
    database.close()


def test_what_is_gathered_is_bounded(ledger: Ledger) -> None:
    accounts = ledger.accounts()
    long = GatheredSums()
    for number in range(100):
        long.add(ledger.database.write([usage_row(number, end_user=f"{number:0255}", request_id="")]))
    # a sum and a look-up each, and the memory of a long name
    assert long.entries > 250
    account = accounts._sums  # type: ignore[attr-defined]
    batch = ledger.database.write([usage_row(number, request_id="") for number in range(1_000)])
    for _ in range(200):
        account.add([batch], None, 0.0)
    assert account.gathered.entries < 10
    assert account.is_due(account.cut_at, spool_accounts.SUMS_RHYTHM, force=False)


def test_marks_of_spools_that_nobody_finds_go_after_a_year(ledger: Ledger) -> None:
    ledger.write(usage_row(1))
    again = ledger.another()
    other = again.open_accounts("lost", own=True)
    other.add([again.write([usage_row(2)])], Position(1, 1))
    flush_all(other)
    old = int((time.time() - FORGOTTEN_SECONDS - 60) * 1e6)
    lost = usage_marks.c.name == "lost"
    ledger.run(lambda connection: connection.execute(usage_marks.update().where(lost).values(moved_at=old)))
    ledger.accounts().close()
    assert ledger.read(usage_marks) == []
    again.close()


def test_the_steps_of_a_half_written_amount_are_those_of_every_version() -> None:
    """Their names are in the database. Dimensions may be added at the end, and shards never change."""
    assert SHARDS == 64
    assert _DIMENSIONS == ("all", "payer", "user", "team", "organization", "end_user", "tag")
    assert [shard_of(name_id(name)) for name in ("ada", "red", "")] == [5, 3, 0]


def test_many_who_pay_are_sorted_in_parts_as_the_table_is() -> None:
    scopes = [(kind, f"{number * 7919 % 10_007:05d}") for number in range(10_000) for kind in ("user", "key", "a")]
    assert in_table_order(scopes) == sorted(scopes)
    assert in_table_order([]) == []
