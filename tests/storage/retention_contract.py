"""What holds of old rows in every database: whole partitions go, and sums stay."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, select

from tests.builders import usage_row, usage_rows
from tests.storage.partitions_migration_contract import rows_of, sums_of
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.usage import known_partitions
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.storage.usage.known_partitions import Periods
from twisted_vllm.storage.usage.partitions import (
    SHOWN_FROM,
    PartitionGone,
    all_partitions,
    detach_all,
    partition_named,
    partitions_of,
    rows_in,
)
from twisted_vllm.storage.usage.queries.lookups import RowFilter
from twisted_vllm.storage.usage.queries.rows import count_rows, page_of_rows
from twisted_vllm.storage.usage.tables import usage, usage_payers, usage_targets
from twisted_vllm.usage.interfaces import RowsRejected
from twisted_vllm.usage.records import UsageRow

DAY = 86_400
MONTHS, DAYS = 140.0 * DAY, 10.0 * DAY


def at(text: str) -> int:
    """Return a time in microseconds since 1970."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000_000)


class Store:
    """The ledger in one database, whose clock a test sets."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.time = at("2026-06-15")
        self.held: int | None = None
        self.engine: Engine = make_engine(parse_url(Secret(url)))
        migrate(self.engine)
        self.periods = Periods(MONTHS, self.now)
        self.database = self.another(self.periods)

    def now(self) -> float:
        return self.time / 1e6

    def another(self, periods: Periods | None = None) -> UsageDatabase:
        """Return a connection of another process."""
        return UsageDatabase(
            Secret(self.url),
            lambda kind, id, time: 0,
            self.now,
            periods=periods or Periods(MONTHS, self.now),
            held_from=lambda connection: self.held,
        )

    def write(self, *times: str, database: UsageDatabase | None = None) -> Sequence[UsageRow]:
        rows = [usage_row(number, time=at(time) + number) for number, time in enumerate(times)]
        self.write_rows(rows, database)
        return rows

    def write_rows(self, rows: Sequence[UsageRow], database: UsageDatabase | None = None) -> None:
        database = database or self.database
        written = database.write(rows)
        assert written is not None
        accounts = database.open_accounts("spool", own=True)
        accounts.add([written], None)
        while accounts.flush(force=True)[0]:
            pass

    @property
    def partitions(self) -> list[str]:
        with self.engine.connect() as connection:
            return sorted(each.name for each in all_partitions(connection))

    @property
    def rows(self) -> list[int]:
        return [row["time"] for row in rows_of(self.engine)]

    @property
    def requests(self) -> int:
        """How many requests all sums of days have."""
        return sum(sums[0] for (kind, *_), sums in sums_of(self.engine).items() if kind == 0)

    def close(self) -> None:
        self.database.close()
        self.engine.dispose()


class RetentionContract:
    """Fixture: `store`."""

    def test_months_whose_rows_are_all_too_old_are_dropped(self, store: Store) -> None:
        rows = store.write("2026-02-27", "2026-02-28T23:59:59", "2026-03-01", "2026-06-15")
        assert store.partitions == ["2026-02", "2026-03", "2026-06"]
        assert store.database.drop_before(at("2026-02-28T23:59:59.999999")) == 0
        assert store.database.drop_before(at("2026-03-01")) == 1
        assert store.partitions == ["2026-03", "2026-06"]
        assert store.rows == [row.time for row in rows[2:]]
        assert store.requests == 4
        assert store.database.drop_before(at("2026-03-01")) == 0

    def test_a_short_retention_makes_days(self, store: Store) -> None:
        store.periods.reconfigure(DAYS)
        store.write("2026-06-10", "2026-06-10T23:59:59", "2026-06-11")
        assert store.partitions == ["2026-06-10", "2026-06-11"]
        assert store.database.drop_before(at("2026-06-11")) == 1
        assert len(store.rows) == 1

    def test_another_unit_holds_from_the_next_partition_on(self, store: Store) -> None:
        store.write("2026-06-10")
        store.periods.reconfigure(DAYS)
        store.write("2026-06-11", "2026-07-01")
        assert store.partitions == ["2026-06", "2026-07-01"]
        store.periods.reconfigure(MONTHS)
        store.write("2026-07-02", "2026-08-09")
        assert store.partitions == ["2026-06", "2026-07-01", "2026-07-02", "2026-08"]

    def test_the_next_partition_is_there_before_it_begins(self, store: Store) -> None:
        store.write("2026-06-30T20:00")
        assert store.partitions == ["2026-06"]
        store.write("2026-06-30T21:00:01")
        assert store.partitions == ["2026-06", "2026-07"]
        store.write("2026-06-30T22:00", "2026-07-01T00:00")
        assert store.partitions == ["2026-06", "2026-07"]

    def test_a_late_row_counts_and_is_not_stored(self, store: Store) -> None:
        store.write("2026-01-05", "2026-06-15")
        assert store.rows == [at("2026-06-15") + 1]
        assert store.partitions == ["2026-06"]
        assert store.requests == 2

    def test_a_row_that_is_too_old_is_stored_where_its_partition_is_left(self, store: Store) -> None:
        store.write("2026-03-31")
        store.time = at("2026-08-30")
        store.write("2026-03-02")
        assert len(store.rows) == 2

    def test_another_process_notices_that_a_partition_was_dropped(self, store: Store) -> None:
        """It has the partition open and writes a late row for it, as from a spool that waited."""
        other = store.another()
        store.write("2026-02-02", database=other)
        store.time = at("2026-08-30")
        assert store.database.drop_before(at("2026-03-01")) == 1
        # a payer that nobody stored yet
        rows = [usage_row(7, time=at("2026-02-03")), usage_row(8, time=at("2026-06-15"), key_id="new", model="new")]
        store.write_rows(rows, other)
        assert store.partitions == ["2026-06"]
        assert store.rows == [at("2026-06-15")]
        assert store.requests == 3
        with store.engine.connect() as connection:
            assert "new" in connection.scalars(select(usage_payers.c.key_id)).all()
            assert "new" in connection.scalars(select(usage_targets.c.model)).all()
        other.close()

    def test_a_reader_notices_that_a_partition_was_dropped(self, store: Store) -> None:
        store.write("2026-02-02", "2026-06-15")
        with store.engine.connect() as connection:
            known = partitions_of(connection)
            assert store.database.drop_before(at("2026-03-01")) == 1
            found: list[int] = []
            gone = 0
            for each in known:
                try:
                    found += rows_in(connection, each).execute(select(usage.c.time)).scalars().all()
                except PartitionGone:
                    gone += 1
            connection.rollback()
            detach_all(connection.connection.driver_connection, connection.info)
        assert found == [at("2026-06-15") + 1]
        assert gone == len(known) - 1

    def test_rows_that_are_too_old_are_not_shown_until_their_partition_goes(self, store: Store) -> None:
        """They were asked to be gone, and wait for the end of their month."""
        rows = store.write("2026-05-10", "2026-05-20", "2026-06-06")
        for oldest, shown in ((None, rows), (at("2026-05-15"), rows[1:]), (at("2026-06-01"), rows[2:])):
            engine = make_engine(parse_url(Secret(store.url)), read_only=True)
            engine.update_execution_options(**{SHOWN_FROM: lambda oldest=oldest: oldest})
            with engine.connect() as connection:
                found = page_of_rows(connection, RowFilter(None, None), 0, 10)
                assert [row.id for row in found] == [row.id for row in reversed(shown)]
                assert count_rows(connection, RowFilter(None, None)) == len(shown)
                connection.rollback()
                detach_all(connection.connection.driver_connection, connection.info)
            engine.dispose()

    def test_what_is_not_exported_is_kept(self, store: Store) -> None:
        store.write("2026-01-02", "2026-02-02", "2026-03-02")
        store.periods.reconfigure(None)
        store.write("2026-01-02", "2026-02-02", "2026-03-02")
        store.held = at("2026-02-20")
        assert store.database.drop_before(at("2026-06-01")) == 1
        assert store.partitions == ["2026-02", "2026-03"]
        store.held = None
        assert store.database.drop_before(at("2026-06-01")) == 2

    def test_two_processes_make_the_same_partition_at_once(self, store: Store) -> None:
        others = [store.another() for _ in range(2)]
        with ThreadPoolExecutor(2) as pool:
            for month in range(3, 7):
                rows = [usage_rows(3, 10 * month + 5 * which, time=at(f"2026-{month:02}-03")) for which in range(2)]
                for done in [pool.submit(each.write, some) for each, some in zip(others, rows, strict=True)]:
                    done.result()
        assert store.partitions == ["2026-03", "2026-04", "2026-05", "2026-06"]
        assert len(store.rows) == 24
        for each in others:
            each.close()

    def test_a_clock_that_jumps_makes_a_bounded_number_of_partitions(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(known_partitions, "MAX_PARTITIONS", 3)
        store.write("2026-06-15", "2031-01-01", "2090-01-01")
        with pytest.raises(RowsRejected):
            store.database.write(usage_rows(1, time=at("2077-01-01")))
        store.write("2026-06-15", "2090-01-02")
        assert len(store.partitions) == 3

    @pytest.mark.parametrize("time", [-(2**62), 2**62])
    def test_a_time_that_no_calendar_has_is_refused(self, store: Store, time: int) -> None:
        store.periods.reconfigure(None)
        with pytest.raises(RowsRejected):
            store.database.write([usage_row(1, time=time)])

    def test_writers_and_readers_do_not_wait_for_a_drop(self, store: Store) -> None:
        """The slowest write and read while months go; a CI machine may pause for a while by itself."""
        store.periods.reconfigure(None)
        months = [f"2025-{month:02}-03" for month in range(1, 9)]
        for month in months:
            store.write_rows(usage_rows(2_000, time=at(month)))
        done = threading.Event()
        slowest: dict[str, float] = {}

        def repeat(name: str, work: Callable[[int], object]) -> None:
            number = 0
            while not done.is_set():
                number += 1
                began = time.monotonic()
                work(number)
                slowest[name] = max(slowest.get(name, 0.0), time.monotonic() - began)
                time.sleep(0.002)

        writer, reading = store.another(Periods(None, store.now)), make_engine(parse_url(Secret(store.url)))
        threads = [
            threading.Thread(
                target=repeat,
                args=("write", lambda number: writer.write(usage_rows(20, number * 20, time=at("2026-06-15")))),
            ),
            threading.Thread(target=repeat, args=("read", lambda number: _read_newest(reading))),
        ]
        for thread in threads:
            thread.start()
        while len(slowest) < 2:
            time.sleep(0.01)
        slowest.clear()
        for number in range(2, 10):
            store.database.drop_before(at(f"2025-{number:02}-01"))
        time.sleep(0.1)
        done.set()
        for thread in threads:
            thread.join()
        assert [name for name in store.partitions if name.startswith("2025")] == []
        print(slowest)
        assert max(slowest.values()) < 1.0
        writer.close()
        reading.dispose()


def _read_newest(engine: Engine) -> None:
    with engine.connect() as connection:
        newest = partitions_of(connection)[0]
        rows_in(connection, newest).execute(select(usage.c.time).limit(50)).all()
        connection.rollback()
        detach_all(connection.connection.driver_connection, connection.info)


def test_partitions_are_found_by_their_names() -> None:
    for name in ("2026-02", "2024-02-29", "1970-01"):
        found = partition_named(name)
        assert found is not None
        assert found.name == name
    assert [partition_named(each) for each in ("", "2026", "2026-13", "2026-2", "2026-02-30", "x", "2026-02-1")] == [
        None
    ] * 7
