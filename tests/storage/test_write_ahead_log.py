"""SQLite's write-ahead log is emptied without holding up those who write."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.write_ahead_log import PATIENCE, empty_log

#: seconds that the engine waits for a lock
LOCK_SECONDS = 5.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.sqlite"


@pytest.fixture
def engine(file: Path) -> Iterator[Engine]:
    engine = make_engine(parse_url(Secret(f"sqlite:///{file}")), connections=1, lock_seconds=LOCK_SECONDS)
    migrate(engine)
    yield engine
    engine.dispose()


def write(file: Path, text: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS notes (text TEXT)")
        connection.execute("INSERT INTO notes VALUES (?)", (text,))


def size(file: Path) -> int:
    return file.with_name(file.name + "-wal").stat().st_size


def test_the_log_is_emptied_and_its_content_is_kept(file: Path, engine: Engine) -> None:
    with closing(sqlite3.connect(file)):
        write(file, "kept")
        assert size(file) > 0
        assert empty_log(engine, patience=PATIENCE)
        assert size(file) == 0
        with closing(sqlite3.connect(file)) as other:
            assert other.execute("SELECT text FROM notes").fetchall() == [("kept",)]


def test_a_process_that_reads_from_the_log_holds_up_changes_for_a_moment_and_not_for_the_time_of_a_lock(
    file: Path, engine: Engine
) -> None:
    """It was the time of a lock, every five seconds: the log's lock for changes is held while it waits."""
    write(file, "first")
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM notes").fetchall()
        write(file, "second")
        began = time.monotonic()
        assert not empty_log(engine, patience=PATIENCE)
        assert time.monotonic() - began < LOCK_SECONDS / 5
        reader.execute("ROLLBACK")
    assert empty_log(engine, patience=PATIENCE)


def test_the_connection_waits_for_locks_as_before(file: Path, engine: Engine) -> None:
    assert empty_log(engine, patience=0)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == LOCK_SECONDS * 1000
