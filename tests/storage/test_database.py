from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from twisted.internet.defer import gatherResults
from twisted.logger import LogEvent, eventAsText
from twisted.logger import capturedLogs as captured_logs

from tests.storage.asking import answers
from tests.storage.migrations import differences, downgrade, upgrade
from tests.storage.start_race import ROOT, start_together
from tests.storage.store_contract import all_keys, key_record, put
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage import lane
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.engine import make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.store import Store
from twisted_vllm.storage.tables import VERSION_TABLE
from twisted_vllm.storage.usage.database import UsageDatabase

PASSWORD = "s3cr!t-Pass"


def texts(events: Sequence[LogEvent]) -> str:
    return "\n".join(eventAsText(event) + repr(event) for event in events)


async def refusal(database: Database) -> str:
    """Return what the operator reads when the database does not start; it must leave nothing running."""
    with pytest.raises(StoreError) as refused:
        database.open()
    await database.stop()
    assert refused.value.__context__ is None or refused.value.__suppress_context__
    return str(refused.value)


@pytest_twisted.ensureDeferred
async def test_keys_outlast_a_restart(reactor: Any, tmp_path: Path) -> None:
    url = Secret(f"sqlite:///{tmp_path}/keys.sqlite")
    first = Database(reactor, url)
    first.open()
    await put(Store(first), key_record(1))
    await first.stop()
    second = Database(reactor, url)
    second.open()
    assert await all_keys(Store(second)) == [key_record(1)]
    await second.stop()


@pytest_twisted.ensureDeferred
async def test_a_started_database_answers_and_a_stopped_one_does_not(reactor: Any, tmp_path: Path) -> None:
    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"))
    assert await answers(database) is False
    database.open()
    assert await answers(database) is True
    await database.stop()
    assert await answers(database) is False
    with pytest.raises(StoreUnavailable):
        await all_keys(Store(database))


@pytest_twisted.ensureDeferred
async def test_stopping_twice_or_before_the_start_does_nothing(reactor: Any, tmp_path: Path) -> None:
    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"))
    await database.stop()
    database.open()
    await database.stop()
    await database.stop()


@pytest_twisted.ensureDeferred
async def test_stopping_waits_for_the_work_that_was_taken(reactor: Any, tmp_path: Path) -> None:
    url = Secret(f"sqlite:///{tmp_path}/keys.sqlite")
    database = Database(reactor, url)
    database.open()
    store = Store(database)
    inserted = gatherResults([put(store, key_record(number)) for number in range(20)])
    await database.stop()
    assert inserted.called
    await inserted
    database.open()
    assert len(await all_keys(store)) == 20
    await database.stop()


@pytest_twisted.ensureDeferred
async def test_work_that_fails_changes_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("DELETE FROM vllm_passthrough_keys"))
        raise ValueError("after all")

    store = Store(database)
    await put(store, key_record(1))
    with pytest.raises(ValueError, match="after all"):
        await database.run(work, writes=True)
    assert len(await all_keys(store)) == 1


@pytest_twisted.ensureDeferred
async def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    assert await database.run(downgrade, writes=True) == [VERSION_TABLE]
    await database.run(upgrade, writes=True)
    assert await database.run(differences, writes=False) == []


@pytest_twisted.ensureDeferred
async def test_a_database_whose_migrations_were_undone_gets_its_tables_again(database: Database) -> None:
    await database.run(downgrade, writes=True)
    await database.stop()
    database.open()
    assert await database.run(differences, writes=False) == []


@pytest_twisted.ensureDeferred
async def test_the_file_is_for_its_owner_alone(reactor: Any, tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        database = Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"))
        database.open()
        await put(Store(database), key_record(1))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        await database.stop()
    finally:
        os.umask(umask)
    assert modes["keys.sqlite"] == 0o600
    assert set(modes.values()) == {0o600}


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT count(*) FROM vllm_passthrough_keys").fetchall())
connection.close()
"""


@pytest_twisted.ensureDeferred
async def test_another_program_that_reads_the_file_meanwhile_does_no_harm(reactor: Any, tmp_path: Path) -> None:
    url = Secret(f"sqlite:///{tmp_path}/keys.sqlite")
    database = Database(reactor, url)
    database.open()
    # what else the process connects to the file must not loosen the hold that the first connection has on it
    ledger = UsageDatabase(url, lambda kind, id, time: 0)
    await put(Store(database), key_record(1))
    for count in (1, 2):
        read = subprocess.run(
            [sys.executable, "-c", READER, tmp_path / "keys.sqlite"], capture_output=True, text=True, check=True
        )
        assert read.stdout == f"[({count},)]\n"
        # the last to leave would take this away, and with it what is written next
        assert (tmp_path / "keys.sqlite-wal").exists()
        await put(Store(database), key_record(count + 1))
    ledger.close()
    await database.stop()
    with closing(sqlite3.connect(tmp_path / "keys.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM vllm_passthrough_keys").fetchall() == [(3,)]


@pytest_twisted.ensureDeferred
async def test_a_link_to_where_there_is_no_file_yet_is_followed(reactor: Any, tmp_path: Path) -> None:
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "keys.sqlite")
    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/link.sqlite"))
    database.open()
    await database.stop()
    assert stat.S_IMODE((tmp_path / "keys.sqlite").stat().st_mode) == 0o600


@pytest_twisted.ensureDeferred
async def test_sqlite_writes_ahead_and_checks_foreign_keys(database: Database) -> None:
    def work(connection: Connection) -> list[Any]:
        return [connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "foreign_keys")]

    assert await database.run(work, writes=False) == ["wal", 1]


def test_processes_that_start_at_the_same_moment_all_start(tmp_path: Path) -> None:
    assert start_together(f"sqlite:///{tmp_path}/keys.sqlite", 4) == ["started"] * 4


def test_a_start_waits_for_another_that_is_migrating(tmp_path: Path) -> None:
    url = Secret(f"sqlite:///{tmp_path}/keys.sqlite")
    other = sqlite3.connect(tmp_path / "keys.sqlite", isolation_level=None)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE migrated_meanwhile (x)")
    engine = make_engine(parse_url(url))
    outcome: list[BaseException | None] = []

    def start() -> None:
        try:
            migrate(engine)
        except BaseException as error:
            outcome.append(error)
        else:
            outcome.append(None)

    starting = threading.Thread(target=start)
    starting.start()
    # Time to read, were it not to wait: what it read would be stale once the other commits.
    starting.join(0.3)
    waited = not outcome
    other.execute("COMMIT")
    starting.join(20)
    engine.dispose()
    other.close()
    assert waited
    assert outcome == [None]


@pytest_twisted.ensureDeferred
async def test_a_directory_that_is_missing_is_named(reactor: Any, tmp_path: Path) -> None:
    message = await refusal(Database(reactor, Secret(f"sqlite:///{tmp_path}/missing/keys.sqlite")))
    assert f"{tmp_path}/missing, does not exist" in message


@pytest_twisted.ensureDeferred
async def test_a_file_that_cannot_be_opened_is_named(reactor: Any, tmp_path: Path) -> None:
    message = await refusal(Database(reactor, Secret(f"sqlite:///{tmp_path}")))
    assert message == f"The database file {tmp_path} cannot be opened for writing: Is a directory."


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_no_database_is_refused(reactor: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database at all, only words" * 50)
    message = await refusal(Database(reactor, Secret(f"sqlite:///{tmp_path}/notes.txt")))
    assert message == "The database cannot be used: DatabaseError: file is not a database"


@pytest_twisted.ensureDeferred
async def test_a_newer_schema_is_refused_and_left_alone(reactor: Any, tmp_path: Path, database: Database) -> None:
    await database.run(lambda work: work.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")), writes=True)
    message = await refusal(Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite")))
    assert "'9999', which is newer than '00" in message
    with closing(sqlite3.connect(tmp_path / "keys.sqlite")) as connection:
        assert connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall() == [("9999",)]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"postgresql://gateway:{PASSWORD}@host:{PASSWORD}/x", "cannot be read"),
        (PASSWORD, "cannot be read"),
        (f"postgresql://gateway:un@{PASSWORD}@host/x", "write it as %40"),
        (f"mysql://gateway:{PASSWORD}@host/x", "not supported"),
        (f"postgresql://gateway:{PASSWORD}@host/x?schema=a%20b", "one plain name"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_url_that_cannot_be_used_is_refused_without_being_shown(reactor: Any, url: str, told: str) -> None:
    with captured_logs() as events:
        message = await refusal(Database(reactor, Secret(url)))
    assert told in message
    assert PASSWORD not in message + texts(events)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
def test_the_urls_that_litellm_takes_are_taken(scheme: str) -> None:
    parsed = parse_url(Secret(f"{scheme}://ada:x@db:5432/keys?schema=tenant&connection_limit=5&sslmode=require"))
    assert parsed.drivername == "postgresql+psycopg"
    assert dict(parsed.query) == {"sslmode": "require", "options": '-c search_path="tenant"'}


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_there_is_refused_without_showing_the_password(reactor: Any, tmp_path: Path) -> None:
    url = f"postgresql://gateway:{PASSWORD}@/keys?host={tmp_path}"
    with captured_logs() as events:
        message = await refusal(Database(reactor, Secret(url)))
    assert "The database cannot be used: OperationalError: connection" in message
    assert PASSWORD not in message + texts(events)


@pytest.mark.parametrize("shown", [PASSWORD, "s3cr%21t-Pass", f"postgresql://gateway:{PASSWORD}@host/keys"])
def test_a_reason_for_the_log_holds_no_password_and_no_values(shown: str) -> None:
    error = OperationalError("INSERT", {"token": "feed"}, Exception(f"cannot use {shown}\nDETAIL: Key (token)=(feed)"))
    reason = reason_of(error, Secret(f"postgresql://gateway:{PASSWORD}@host/keys"))
    assert reason == "Exception: cannot use ***"


def test_an_error_without_words_still_has_a_reason() -> None:
    assert reason_of(SQLAlchemyError(""), Secret("sqlite:///x")) == "SQLAlchemyError: "


@pytest_twisted.ensureDeferred
async def test_a_broken_database_refuses_and_is_logged_once_until_it_is_back(database: Database) -> None:
    store = Store(database)
    await put(store, key_record(1))
    await database.run(lambda work: work.execute(text("ALTER TABLE vllm_passthrough_keys RENAME TO away")), writes=True)
    with captured_logs() as events:
        for number in (1, 2):
            with pytest.raises(StoreUnavailable) as refused:
                await put(store, key_record(number))
            assert refused.value.retry_after == 5
            assert refused.value.__context__ is None
        await database.run(
            lambda work: work.execute(text("ALTER TABLE away RENAME TO vllm_passthrough_keys")), writes=True
        )
        assert await all_keys(store) == [key_record(1)]
    levels = [event["log_level"].name for event in events]
    assert levels == ["error", "debug", "info"]
    assert "no such table" in texts(events)
    assert key_record(1).token not in texts(events)


def test_a_database_does_not_show_its_url(reactor: Any) -> None:
    assert repr(Database(reactor, Secret(f"postgresql://gateway:{PASSWORD}@host/x"))) == "<Database stopped>"


def test_a_process_that_forgets_to_stop_its_database_still_ends(tmp_path: Path) -> None:
    program = (
        "import sys; from twisted.internet import reactor\n"
        "from twisted_vllm.config.secret import Secret; from twisted_vllm.storage.database import Database\n"
        "database = Database(reactor, Secret(sys.argv[1])); database.open()\n"
        "database.run(lambda _: None, writes=False).addCallback(lambda _: reactor.stop()); reactor.run()\n"
    )
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path}/keys.sqlite"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, timeout=20, check=False).returncode == 0


@pytest_twisted.ensureDeferred
async def test_a_file_that_another_program_locks_refuses_changes_in_time_and_reads_go_on(
    reactor: Any, tmp_path: Path
) -> None:
    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"), seconds=0.3)
    database.open()
    store = Store(database)
    other = sqlite3.connect(tmp_path / "keys.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with captured_logs() as events:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="holds the lock of the database"):
                await put(store, key_record(1))
            assert time.monotonic() - began < 3
        assert await all_keys(store) == []
        assert database.reachable
        other.execute("ROLLBACK")
        other.close()
        await put(store, key_record(1))
    assert await all_keys(store) == [key_record(1)]
    assert [event["log_level"].name for event in events] == ["error", "debug", "info"]
    assert "takes no changes: OperationalError: database is locked" in texts(events)
    await database.stop()


@pytest_twisted.ensureDeferred
async def test_a_full_disk_refuses_changes_says_so_and_changes_nothing(database: Database) -> None:
    store = Store(database)
    await put(store, key_record(1))

    def fill(connection: Connection) -> None:
        # SQLite takes no more pages, as on a full disk
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.execute(text(f"PRAGMA max_page_count = {pages}"))

    def free(connection: Connection) -> None:
        connection.execute(text("PRAGMA max_page_count = 1000000"))

    await database.run(fill, writes=True)
    with captured_logs() as events:
        with pytest.raises(StoreUnavailable, match="disk of the database is full"):
            await put(store, key_record(2, metadata={"note": "x" * 100_000}))
        assert await all_keys(store) == [key_record(1)]
        assert database.reachable
        await database.run(free, writes=True)
    assert [event["log_level"].name for event in events] == ["error", "info"]


@pytest_twisted.ensureDeferred
async def test_changes_do_not_wait_for_what_only_reads(database: Database) -> None:
    go_on = threading.Event()
    slow = [database.run(lambda _: go_on.wait(30), writes=False) for _ in range(20)]
    await put(Store(database), key_record(1))
    assert not any(each.called for each in slow)
    go_on.set()
    assert await gatherResults(slow) == [True] * 20


@pytest_twisted.ensureDeferred
async def test_work_that_does_not_end_in_time_is_undone_and_names_the_setting(reactor: Any, tmp_path: Path) -> None:
    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"), seconds=0.3)
    database.open()
    endless = text("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")

    def work(connection: Connection) -> None:
        connection.execute(text("INSERT INTO vllm_passthrough_changes (revision, kind, name) VALUES (1, 'key', 'x')"))
        connection.execute(endless)

    waiting = [database.run(work, writes=True) for _ in range(10)]
    began = time.monotonic()
    for each in waiting:
        with pytest.raises(StoreUnavailable, match=r"timeouts\.database"):
            await each
    # those that waited too long for the first were not begun
    assert time.monotonic() - began < 3
    assert database.reachable
    count = text("SELECT count(*) FROM vllm_passthrough_changes")
    assert await database.run(lambda connection: connection.execute(count).scalar(), writes=False) == 0
    await database.stop()


# what is stuck is abandoned with its connection, which the end of the process closes: Python 3.13 warns of it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest_twisted.ensureDeferred
async def test_a_stop_does_not_wait_for_work_that_is_stuck(
    reactor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "STOP_SECONDS", 0.2)
    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"))
    database.open()
    go_on = threading.Event()
    stuck = database.run(lambda _: go_on.wait(30), writes=False)
    began = time.monotonic()
    await database.stop()
    assert time.monotonic() - began < 5
    go_on.set()
    await stuck
