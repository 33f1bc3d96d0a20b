"""SQLite's file is removed, replaced or emptied while it is open: that is told, and nothing is acknowledged."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Connection, text
from twisted.logger import LogEvent, eventAsText
from twisted.logger import capturedLogs as captured_logs

from tests.builders import usage_rows
from tests.storage.store_contract import all_keys, key_record, put
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.database import ALARM_INTERVAL, Database
from twisted_vllm.storage.store import Store
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.usage.interfaces import DatabaseUnavailable


class Case:
    """A database of one key in a directory, and a ledger beside it."""

    def __init__(self, reactor: Any, directory: Path) -> None:
        self.now = 0.0
        self.reactor = reactor
        self.directory = directory
        directory.mkdir()
        self.file = directory / "keys.sqlite"
        self.url = Secret(f"sqlite:///{self.file}")
        self.database = Database(reactor, self.url, monotonic=lambda: self.now)
        self.database.open()
        self.store = Store(self.database)
        self.ledger = UsageDatabase(self.url, lambda kind, id, time: 0)

    async def is_refused(self) -> bool:
        """Try to keep a second key; return whether that was refused."""
        try:
            await put(self.store, key_record(2))
        except StoreUnavailable as error:
            assert "removed or replaced" in error.message
            return True
        return False

    async def keys_after_a_restart(self) -> list[KeyRecord]:
        """Return what the next process finds at the path; the database was stopped."""
        self.ledger.close()
        restarted = Database(self.reactor, self.url)
        restarted.open()
        found = await all_keys(Store(restarted))
        await restarted.stop()
        return found

    async def answers(self) -> bool:
        """Read something; return whether that worked."""
        try:
            await all_keys(self.store)
        except StoreUnavailable:
            return False
        return True


@pytest.fixture
def case(reactor: Any, tmp_path: Path, logged_failures: Any) -> Iterator[Case]:
    case = Case(reactor, tmp_path / "data")
    pytest_twisted.blockon(put(case.store, key_record(1)))
    yield case
    case.ledger.close()
    pytest_twisted.blockon(case.database.stop())
    logged_failures.flush()


def another_file(case: Case) -> Path:
    """Return a database of its own with the key."""
    found = case.directory.parent / "another.sqlite"
    with closing(sqlite3.connect(case.file)) as source, closing(sqlite3.connect(found)) as target:
        source.backup(target)
    return found


def remove(case: Case) -> str:
    case.file.unlink()
    return "was removed"


def replace(case: Case) -> str:
    os.rename(another_file(case), case.file)
    return "was replaced by another file"


def copy_over_after_removal(case: Case) -> str:
    copy = another_file(case)
    case.file.unlink()
    shutil.copy(copy, case.file)
    return "was replaced by another file"


def remove_directory(case: Case) -> str:
    shutil.rmtree(case.directory)
    return "was removed"


def move_directory(case: Case) -> str:
    os.rename(case.directory, case.directory.with_name("elsewhere"))
    return "was removed"


def put_a_file_in_place_of_the_directory(case: Case) -> str:
    move_directory(case)
    case.directory.write_text("")
    return "cannot be found (Not a directory)"


def empty(case: Case) -> str:
    os.truncate(case.file, 0)
    return "was emptied"


def leave_a_link_that_leads_nowhere(case: Case) -> str:
    os.rename(case.file, case.directory / "other.sqlite")
    case.file.symlink_to(case.directory / "missing.sqlite")
    return "was removed"


LOSSES = [
    remove,
    replace,
    copy_over_after_removal,
    remove_directory,
    move_directory,
    put_a_file_in_place_of_the_directory,
    empty,
    leave_a_link_that_leads_nowhere,
]


def criticals(events: Sequence[LogEvent]) -> list[str]:
    return [eventAsText(event) for event in events if event["log_level"].name == "critical"]


@pytest.mark.parametrize("lose", LOSSES)
@pytest_twisted.ensureDeferred
async def test_a_lost_file_is_told_and_nothing_is_acknowledged(case: Case, lose: Callable[[Case], str]) -> None:
    what = lose(case)
    assert not case.database.file_is_lost
    with captured_logs() as events:
        assert not await case.answers()
        assert case.database.file_is_lost
        assert await case.is_refused()
        with pytest.raises(StoreUnavailable):
            await all_keys(case.store)
        with pytest.raises(DatabaseUnavailable, match="DatabaseFileLost"):
            case.ledger.write(usage_rows(3))
    [told] = criticals(events)
    assert f"{case.file} {what} while the gateway runs." in told
    assert "restart the gateway" in told
    # SQLite would make an empty file where there is none
    assert case.file.is_file() == (lose in (replace, copy_over_after_removal, empty))


@pytest_twisted.ensureDeferred
async def test_a_lost_file_is_told_again_after_five_minutes_and_not_before(case: Case) -> None:
    remove(case)
    with captured_logs() as events:
        for _ in range(20):
            await case.answers()
        assert len(criticals(events)) == 1
        case.now += ALARM_INTERVAL
        for _ in range(20):
            await case.answers()
    assert len(criticals(events)) == 2


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_lost_while_it_is_written_acknowledges_nothing(case: Case) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("DELETE FROM vllm_passthrough_keys"))
        os.rename(case.file, case.directory / "aside.sqlite")

    with pytest.raises(StoreUnavailable):
        await case.database.run(work, writes=True)
    os.rename(case.directory / "aside.sqlite", case.file)
    assert await all_keys(case.store) == [key_record(1)]


@pytest_twisted.ensureDeferred
async def test_the_same_file_may_come_back(case: Case) -> None:
    aside = case.directory / "aside.sqlite"
    os.rename(case.file, aside)
    assert await case.is_refused()
    with pytest.raises(DatabaseUnavailable):
        case.ledger.write(usage_rows(3))
    os.rename(aside, case.file)
    assert await case.answers()
    assert not case.database.file_is_lost
    assert not await case.is_refused()
    case.ledger.write(usage_rows(3))
    assert await all_keys(case.store) == [key_record(1), key_record(2)]


@pytest_twisted.ensureDeferred
async def test_a_file_that_took_the_place_is_neither_written_nor_damaged_and_is_used_after_a_restart(
    case: Case,
) -> None:
    copy = another_file(case)
    # what comes after the copy is in the write-ahead log, which the next start finds beside the copy
    for number in range(3, 40):
        await put(case.store, key_record(number))
    os.rename(copy, case.file)
    assert await case.is_refused()
    assert not await case.answers()
    await case.database.stop()
    assert await case.keys_after_a_restart() == [key_record(1)]
    with closing(sqlite3.connect(case.file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("ends", ["while the gateway runs", "when the gateway stops"])
@pytest_twisted.ensureDeferred
async def test_a_report_that_reads_the_lost_file_does_not_leave_its_log_to_the_next_one(
    reactor: Any, case: Case, ends: str
) -> None:
    copy = another_file(case)
    for number in range(3, 40):
        await put(case.store, key_record(number))
    with closing(sqlite3.connect(case.file, isolation_level=None)) as report, captured_logs() as events:
        report.execute("BEGIN")
        report.execute("SELECT count(*) FROM vllm_passthrough_keys").fetchall()
        os.rename(copy, case.file)
        assert await case.is_refused()
        # an act is refused at once all the same, and not after it waited for the report
        assert await case.is_refused()
        if ends == "while the gateway runs":
            report.rollback()
            assert await case.is_refused()
        else:
            reactor.callLater(0.05, report.rollback)
        await case.database.stop()
    assert await case.keys_after_a_restart() == [key_record(1)]
    told = [eventAsText(event) for event in events]
    assert sum("do not restart before it is written back" in line for line in told) == 1
    assert sum("is written back to it" in line for line in told) == (ends == "while the gateway runs")


@pytest_twisted.ensureDeferred
async def test_what_fills_an_emptied_file_is_not_trusted(case: Case) -> None:
    copy = another_file(case)
    empty(case)
    assert await case.is_refused()
    case.file.write_bytes(copy.read_bytes())
    assert await case.is_refused()


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_only_closed_to_others_is_not_lost(case: Case) -> None:
    case.file.chmod(0)
    assert not await case.is_refused()
    case.file.chmod(0o600)
