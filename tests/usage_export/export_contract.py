"""What holds of the export on every database. The modules that run it have a fixture ``url`` of an empty database."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from sqlalchemy import Connection, Engine, delete, func, select, update

from tests.builders import NOON, usage_row
from tests.storage.ledger_filler import keep
from tests.usage_export.reading import ask_duckdb, files_of, rows_by_pyarrow
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import Conflict
from twisted_vllm.storage.engine import begin, make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.storage.usage.exports import (
    CLAIM_US,
    ExportState,
    Schedule,
    Work,
    ask,
    days_before,
    exported_until,
    fail,
    keeps_from,
    release,
    state_of,
    take_work,
)
from twisted_vllm.storage.usage.partitions import partitions_of, rows_in
from twisted_vllm.storage.usage.tables import usage, usage_exports
from twisted_vllm.usage.days import DAY_US, date_of
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage_export import process
from twisted_vllm.usage_export.job import DONE, FAILED, KEPT, LOST, Job, Report, encode, report_of
from twisted_vllm.usage_export.places import STAGING, DirectoryPlace, make_staging

DAY = NOON // 86_400
HOUR = 3_600 * 1_000_000
SCHEDULE = Schedule(delay=2 * HOUR)


@attrs.define
class Exporting:
    """A database with a ledger, and a directory that it is exported to."""

    url: Secret
    engine: Engine
    directory: Path
    ledger: UsageDatabase
    owners: int = 0

    def store(self, day: int, count: int, first: int = 0, **fields: Any) -> None:
        """Store rows of a day."""
        rows = [
            usage_row(
                first + number, id=f"{first + number:032x}", time=day * DAY_US + (first + number) * 1_000, **fields
            )
            for number in range(count)
        ]
        self.store_rows(rows)

    def store_rows(self, rows: Sequence[UsageRow]) -> None:
        with begin(self.engine, None, writes=True) as connection:
            keep(connection, rows, by_day=True)

    def take(self, now: int, schedule: Schedule = SCHEDULE) -> Work | None:
        self.owners += 1
        with begin(self.engine, None, writes=True) as connection:
            return take_work(connection, now, schedule, f"owner-{self.owners}")

    def job(self, work: Work, **values: Any) -> Job:
        return Job(
            **{
                "database_url": self.url.reveal(),
                "day": work.day,
                "owner": work.owner,
                "requests": work.requests,
                "former_rows": work.former_rows,
                "directory": str(self.directory),
                **values,
            }
        )

    def export_all(self, now: int, schedule: Schedule = SCHEDULE, **values: Any) -> list[tuple[int, Report]]:
        """Export what is due, and return the days with their reports."""
        found = []
        while (work := self.take(now, schedule)) is not None:
            found.append((work.day, process.export(self.job(work, **values))))
            assert len(found) < 50, "the same day again and again"
        return found

    def state(self, schedule: Schedule = SCHEDULE) -> ExportState:
        with begin(self.engine, None, writes=False) as connection:
            return state_of(connection, schedule)

    def until(self, begin_at: date | None = None) -> date | None:
        with begin(self.engine, None, writes=False) as connection:
            return exported_until(connection, begin_at)

    def row(self, day: int) -> Any:
        with begin(self.engine, None, writes=False) as connection:
            return connection.execute(select(usage_exports).where(usage_exports.c.day == day)).one()

    def cost(self, day: int) -> Decimal:
        """The cost of a day's rows in US dollars."""
        rows = select(func.sum(usage.c.cost)).where(usage.c.time >= day * DAY_US, usage.c.time < (day + 1) * DAY_US)
        with self.partition(day) as connection:
            return Decimal(int(connection.execute(rows).scalar_one())) / 10**12

    def let_claims_lapse(self) -> None:
        """Do what ten minutes do."""
        with begin(self.engine, None, writes=True) as connection:
            connection.execute(update(usage_exports).values(claimed_until=0))

    @contextmanager
    def partition(self, day: int) -> Iterator[Connection]:
        """Give a connection on which `usage` means that of a day's partition."""
        with begin(self.engine, None, writes=True) as connection:
            [found] = [each for each in partitions_of(connection) if each.has(day * DAY_US)]
            yield rows_in(connection, found)

    def delete_rows(self, until: int) -> None:
        """Delete the rows before a time: whole days as retention does."""
        if until % DAY_US == 0:
            self.ledger.drop_before(until)
            return
        with self.partition(until // DAY_US) as connection:
            connection.execute(delete(usage).where(usage.c.time < until))


@pytest.fixture
def exporting(url: Secret, tmp_path: Path) -> Iterator[Exporting]:
    engine = make_engine(parse_url(url))
    migrate(engine)
    ledger = UsageDatabase(url, lambda *_: 0)
    yield Exporting(url, engine, tmp_path / "exported", ledger)
    ledger.close()
    engine.dispose()


def after(day: int) -> int:
    """The time at which a day's export is due."""
    return (day + 1) * DAY_US + 2 * HOUR


def test_each_closed_day_is_a_file_whose_rows_and_sums_are_the_ledger_s(exporting: Exporting) -> None:
    exporting.store(DAY, 2_500, cost=123_456_789_012, key_name="ada", team_id="red", tags=("a", "ü"))
    exporting.store(DAY + 1, 10, end_user="grace", request_tags=("x",), headers={"x-project": "p"})
    exporting.store(DAY + 2, 5)
    assert exporting.export_all(after(DAY + 1)) == [
        (DAY, Report(DONE, 1, 2_500, exporting.row(DAY).bytes)),
        (DAY + 1, Report(DONE, 1, 10, exporting.row(DAY + 1).bytes)),
    ]
    first, second = date_of(DAY), date_of(DAY + 1)
    assert files_of(exporting.directory) == [f"usage/date={day}/usage-0000.parquet" for day in (first, second)]
    sums = ask_duckdb(
        exporting.directory, "date, count(*), sum(cost), sum(total_tokens)", "GROUP BY date ORDER BY date"
    )
    assert sums == [(first, 2_500, exporting.cost(DAY), 37_500), (second, 10, exporting.cost(DAY + 1), 150)]
    columns = "key_name, team_id, tags, count(*)"
    assert ask_duckdb(exporting.directory, columns, f"WHERE date = '{first}' GROUP BY ALL") == [
        ("ada", "red", ["a", "ü"], 2_500)
    ]
    assert ask_duckdb(exporting.directory, "end_user, request_tags, headers", f"WHERE date = '{second}' LIMIT 1") == [
        ("grace", ["x"], {"x-project": "p"})
    ]
    assert exporting.until() == second
    assert exporting.state() == ExportState(DAY + 1, DAY + 2, after(DAY + 2))
    # nothing is left to do, and nothing is left behind
    assert exporting.take(after(DAY + 1)) is None
    assert list((exporting.directory / STAGING).iterdir()) == []


def test_a_day_is_not_exported_before_its_delay_is_over(exporting: Exporting) -> None:
    exporting.store(DAY, 1)
    assert exporting.take(after(DAY) - 1) is None
    assert exporting.until() is None
    assert exporting.take(after(DAY)) is not None


def test_the_same_rows_make_the_same_bytes(exporting: Exporting) -> None:
    exporting.store(DAY, 100)
    exporting.export_all(after(DAY))
    path = exporting.directory / files_of(exporting.directory)[0]
    before = path.read_bytes()
    with begin(exporting.engine, None, writes=True) as connection:
        ask(connection, DAY, after(DAY), SCHEDULE)
    assert [report.result for _, report in exporting.export_all(after(DAY))] == [DONE]
    assert path.read_bytes() == before
    assert exporting.row(DAY).times_written == 2


def test_a_day_without_rows_has_no_file_and_counts_as_exported(exporting: Exporting) -> None:
    exporting.store(DAY, 1)
    exporting.store(DAY + 5, 1)
    assert [day for day, _ in exporting.export_all(after(DAY + 5))] == [DAY, DAY + 5]
    assert len(files_of(exporting.directory)) == 2
    assert exporting.until() == date_of(DAY + 5)


def test_years_without_rows_are_noted_at_once(exporting: Exporting) -> None:
    exporting.store(DAY - 3_000, 1)
    exporting.store(DAY, 1)
    assert [day for day, _ in exporting.export_all(after(DAY))] == [DAY - 3_000, DAY]
    assert exporting.until() == date_of(DAY)


def test_a_day_whose_rows_were_deleted_before_their_turn_is_passed_over(exporting: Exporting) -> None:
    exporting.store(DAY - 1, 1)
    exporting.store(DAY, 1)
    exporting.store(DAY + 1, 1)
    exporting.export_all(after(DAY - 1))
    work = exporting.take(after(DAY))
    assert work is not None
    with begin(exporting.engine, None, writes=True) as connection:
        fail(connection, work, after(DAY), "the disk is full")
    exporting.delete_rows((DAY + 1) * DAY_US)
    assert [day for day, _ in exporting.export_all(after(DAY + 1))] == [DAY + 1]
    assert exporting.until() == date_of(DAY + 1)
    assert exporting.state().error is None


def test_a_day_with_many_rows_has_several_files(exporting: Exporting) -> None:
    exporting.store(DAY, 4_500)
    assert [report.files for _, report in exporting.export_all(after(DAY), rows_per_file=1_000)] == [5]
    directory = exporting.directory / f"usage/date={date_of(DAY)}"
    assert [len(rows_by_pyarrow(path)) for path in sorted(directory.iterdir())] == [1_000] * 4 + [500]
    ids = [row["id"] for path in sorted(directory.iterdir()) for row in rows_by_pyarrow(path)]
    assert ids == [f"{number:032x}" for number in range(4_500)]
    # with fewer files, nothing of the former ones stays
    exporting.store(DAY, 1, first=5_000)
    assert [report.files for _, report in exporting.export_all(after(DAY))] == [1]
    assert ask_duckdb(exporting.directory, "count(*), count(DISTINCT id)") == [(4_501, 4_501)]


def test_rows_of_one_microsecond_are_all_there_once(exporting: Exporting) -> None:
    rows = [usage_row(number, id=f"{number:032x}", time=DAY * DAY_US) for number in range(5_000)]
    exporting.store_rows(rows)
    exporting.export_all(after(DAY))
    assert ask_duckdb(exporting.directory, "count(*), count(DISTINCT id)") == [(5_000, 5_000)]


def test_rows_that_come_late_are_in_the_files_at_the_next_look(exporting: Exporting) -> None:
    exporting.store(DAY, 10)
    exporting.store(DAY + 1, 10)
    exporting.export_all(after(DAY + 1))
    exporting.store(DAY, 3, first=100, requests=7)
    found = exporting.export_all(after(DAY + 1) + HOUR)
    assert [(day, report.result, report.rows) for day, report in found] == [(DAY, DONE, 13)]
    assert ask_duckdb(exporting.directory, "count(*), sum(requests)") == [(23, 41)]
    assert exporting.row(DAY).times_written == 2
    # of days that are longer ago nobody looks
    exporting.store(DAY, 1, first=200)
    assert exporting.export_all(after(DAY + 9)) == []
    assert [day for day, _ in exporting.export_all(after(DAY + 9), Schedule(delay=2 * HOUR, recheck_days=10))] == [DAY]


def test_files_are_never_replaced_by_fewer_rows(exporting: Exporting) -> None:
    exporting.store(DAY, 10)
    exporting.store(DAY + 1, 10)
    exporting.export_all(after(DAY + 1))
    exporting.delete_rows(DAY * DAY_US + 5_000)
    exporting.store(DAY, 1, first=100)
    assert exporting.export_all(after(DAY + 1)) == [(DAY, Report(KEPT, rows=6))]
    assert ask_duckdb(exporting.directory, "count(*)") == [(20,)]
    # and it is not tried again
    assert exporting.take(after(DAY + 1)) is None
    exporting.delete_rows((DAY + 1) * DAY_US)
    with begin(exporting.engine, None, writes=True) as connection, pytest.raises(Conflict, match="no row"):
        ask(connection, DAY, after(DAY + 1), SCHEDULE)


def test_what_is_asked_for_must_have_ended(exporting: Exporting) -> None:
    exporting.store(DAY, 1)
    with begin(exporting.engine, None, writes=True) as connection:
        with pytest.raises(Conflict, match="not ended"):
            ask(connection, DAY, after(DAY) - 1, SCHEDULE)
        with pytest.raises(Conflict, match="begin"):
            ask(connection, DAY, after(DAY), Schedule(DAY + 1))


def test_retention_keeps_what_is_not_exported(exporting: Exporting) -> None:
    def held_from(begin_at: date | None = None) -> int | None:
        with begin(exporting.engine, None, writes=False) as connection:
            return keeps_from(connection, begin_at)

    assert held_from() is None
    exporting.store(DAY, 10)
    exporting.store(DAY + 1, 10)
    exporting.store(DAY + 2, 10)
    assert held_from() == DAY * DAY_US
    assert held_from(date_of(DAY + 1)) == (DAY + 1) * DAY_US
    holding = UsageDatabase(exporting.url, lambda *_: 0, held_from=lambda connection: keeps_from(connection))
    try:
        assert holding.drop_before((DAY + 2) * DAY_US) == 0
        exporting.export_all(after(DAY))
        assert held_from() == (DAY + 1) * DAY_US
        assert holding.drop_before((DAY + 2) * DAY_US) == 1
        # the day before the first that is kept is exported
        assert exporting.until() == date_of(DAY)
        exporting.export_all(after(DAY + 2))
        assert holding.drop_before((DAY + 3) * DAY_US) == 2
        assert exporting.until() == date_of(DAY + 2)
        assert held_from() is None
        # and nothing is overdue where nothing is kept
        assert exporting.state() == ExportState(DAY + 2)
    finally:
        holding.close()


def test_the_export_begins_where_the_settings_say(exporting: Exporting) -> None:
    exporting.store(DAY, 1)
    exporting.store(DAY + 1, 1)
    schedule = Schedule(DAY + 1, 2 * HOUR)
    assert [day for day, _ in exporting.export_all(after(DAY + 1), schedule)] == [DAY + 1]
    assert exporting.until() is None
    assert exporting.until(date_of(DAY + 1)) == date_of(DAY + 1)


def test_a_day_has_one_owner_until_its_claim_lapses(exporting: Exporting) -> None:
    exporting.store(DAY, 10)
    now = after(DAY)
    first = exporting.take(now)
    assert first is not None and first.day == DAY
    assert exporting.take(now + CLAIM_US - 1) is None
    second = exporting.take(now + CLAIM_US)
    assert second is not None and second.owner != first.owner
    # the first one was only slow: it writes nothing under a final name
    assert process.export(exporting.job(first)) == Report(LOST)
    assert files_of(exporting.directory) == []
    assert process.export(exporting.job(second)).result == DONE
    assert ask_duckdb(exporting.directory, "count(*)") == [(10,)]


def test_a_claim_that_is_given_back_is_free_at_once(exporting: Exporting) -> None:
    exporting.store(DAY, 1)
    work = exporting.take(after(DAY))
    assert work is not None
    with begin(exporting.engine, None, writes=True) as connection:
        release(connection, work)
    assert exporting.take(after(DAY)) is not None


def test_of_many_gateways_that_look_at_once_one_gets_the_day(exporting: Exporting) -> None:
    exporting.store(DAY, 10)

    def look(number: int) -> Work | None:
        engine = make_engine(parse_url(exporting.url), connections=1)
        try:
            with begin(engine, None, writes=True) as connection:
                return take_work(connection, after(DAY), SCHEDULE, f"gateway-{number}")
        finally:
            engine.dispose()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look, range(8)))
    assert len([work for work in found if work is not None]) == 1


def test_a_failed_day_is_tried_again_later_and_later(exporting: Exporting) -> None:
    exporting.store(DAY, 1)
    now, waits = after(DAY), []
    for _ in range(9):
        work = exporting.take(now)
        assert work is not None
        with begin(exporting.engine, None, writes=True) as connection:
            fail(connection, work, now, "the disk is full")
        waits.append((exporting.row(DAY).retry_at - now) // 60_000_000)
        assert exporting.take(now + 1) is None
        now = exporting.row(DAY).retry_at
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert exporting.state().error == "the disk is full"
    assert [report.result for _, report in exporting.export_all(now)] == [DONE]
    assert exporting.state().error is None


#: exports, and says how much memory that took: what the kernel tells of a child includes its parent's at the fork
MEASURED = """
import sys
from twisted_vllm.usage_export.process import main
code = main(sys.stdin.buffer, sys.stdout.buffer)
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")), file=sys.stderr, flush=True)
sys.exit(code)
"""


def start(exporting: Exporting, work: Work, *, measured: bool = False) -> subprocess.Popen[bytes]:
    """Start a process that exports a day."""
    how = ("-c", MEASURED) if measured else ("-m", "twisted_vllm.usage_export.process")
    errors = subprocess.PIPE if measured else None
    started = subprocess.Popen([sys.executable, *how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    assert started.stdin is not None
    started.stdin.write(encode(exporting.job(work)) + b"\n")
    started.stdin.flush()
    return started


def test_a_process_that_is_killed_leaves_nothing_under_a_final_name(exporting: Exporting) -> None:
    exporting.store(DAY, 30_000)
    now = after(DAY)
    work = exporting.take(now)
    assert work is not None
    killed = start(exporting, work)
    staging = exporting.directory / STAGING
    while not list(staging.glob("*")):
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    assert files_of(exporting.directory) == []
    assert len(list(staging.iterdir())) == 1
    again = exporting.take(now + CLAIM_US)
    assert again is not None
    running = start(exporting, again)
    assert running.stdout is not None
    assert report_of(running.stdout.readline()).rows == 30_000
    assert running.wait(30) == 0
    running.communicate()
    assert ask_duckdb(exporting.directory, "count(*), count(DISTINCT id)") == [(30_000, 30_000)]
    assert list(staging.iterdir()) == []
    assert exporting.row(DAY).claimed_by is None


def test_a_process_ends_with_its_gateway(exporting: Exporting) -> None:
    exporting.store(DAY, 30_000)
    work = exporting.take(after(DAY))
    assert work is not None
    orphan = start(exporting, work)
    assert orphan.stdin is not None
    orphan.stdin.close()
    assert orphan.wait(30) == 1
    assert files_of(exporting.directory) == []
    assert orphan.stdout is not None
    orphan.stdout.close()


def test_a_full_disk_leaves_the_former_files(exporting: Exporting, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting.store(DAY, 10)
    exporting.export_all(after(DAY))
    exporting.store(DAY, 10, first=100)
    make = make_staging

    def on_full_disk(directory: Path, day: str, owner: str) -> Path:
        made = make(directory, day, owner)
        (made / "usage-0000.parquet").symlink_to("/dev/full")
        return made

    with monkeypatch.context() as patched:
        patched.setattr(process, "make_staging", on_full_disk)
        work = exporting.take(after(DAY))
        assert work is not None
        report = process.export(exporting.job(work))
    assert report.result == FAILED and "No space left on device" in report.error
    assert ask_duckdb(exporting.directory, "count(*)") == [(10,)]
    assert list((exporting.directory / STAGING).iterdir()) == []
    with begin(exporting.engine, None, writes=True) as connection:
        release(connection, work)
    exporting.export_all(after(DAY))
    assert ask_duckdb(exporting.directory, "count(*)") == [(20,)]


def test_a_crash_between_two_renames_is_mended_by_the_next_attempt(
    exporting: Exporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporting.store(DAY, 3_000)
    exporting.export_all(after(DAY), rows_per_file=1_000)
    exporting.store(DAY, 1, first=5_000)

    def crash(self: DirectoryPlace, made: Path, names: Sequence[str], day: str) -> None:
        (exporting.directory / f"usage/date={day}").rename(made.with_name(f"{made.name}.former"))
        raise KeyboardInterrupt

    work = exporting.take(after(DAY))
    assert work is not None
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(DirectoryPlace, "publish", crash)
        process.export(exporting.job(work, rows_per_file=1_000))
    assert exporting.until() is None, "the day counts as exported while its files are away"
    exporting.let_claims_lapse()
    exporting.export_all(after(DAY), rows_per_file=1_000)
    assert ask_duckdb(exporting.directory, "count(*), count(DISTINCT id)") == [(3_001, 3_001)]
    assert list((exporting.directory / STAGING).iterdir()) == []


def test_the_days_are_listed_the_latest_first(exporting: Exporting) -> None:
    exporting.store(DAY, 1)
    exporting.store(DAY + 2, 1)
    exporting.export_all(after(DAY + 2))
    with begin(exporting.engine, None, writes=False) as connection:
        assert [row.day for row in days_before(connection, None, 2)] == [DAY + 2, DAY + 1]
        assert [row.day for row in days_before(connection, DAY + 1, 2)] == [DAY]


def test_no_transaction_is_open_between_two_pages(exporting: Exporting) -> None:
    exporting.store(DAY, 5_000)
    reader = make_engine(parse_url(exporting.url), connections=1, read_only=True)
    try:
        pages = iter(process.Pages(reader, DAY))
        counts = [next(pages).num_rows]
        if exporting.engine.dialect.name == "sqlite":
            # the log can be written back to the file, although the day is not read to its end
            exporting.store(DAY, 1, first=9_000)
            with exporting.engine.connect() as connection:
                busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
            assert busy == 0
        else:
            with begin(exporting.engine, None, writes=False) as connection:
                open_now = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
                assert connection.exec_driver_sql(open_now).scalar() == 0
            exporting.store(DAY, 1, first=9_000)
        counts += [page.num_rows for page in pages]
        # what came meanwhile is read too
        assert counts == [1_000, 1_000, 1_000, 1_000, 1_000, 1]
    finally:
        reader.dispose()


def test_the_largest_rows_take_bounded_memory(exporting: Exporting) -> None:
    long = "é" * 4_096
    headers = {f"x-{number}": f"{number}{long}" for number in range(3)}
    for first in range(0, 6_000, 500):
        exporting.store(DAY, 500, first=first, headers=headers, attempts=long, error=long, spend_metadata=long)
    work = exporting.take(after(DAY))
    assert work is not None
    started = start(exporting, work, measured=True)
    assert started.stdout is not None
    report = report_of(started.stdout.readline())
    # before its input ends, at which it would end itself
    assert started.stderr is not None
    told = started.stderr.readline()
    assert started.wait(30) == 0
    started.communicate()
    assert report.rows == 6_000
    assert int(told.split()[1]) < 450 * 1024, told
